"""Where a denoiser comes from: fitted here on public images, a diffusers model, or an improved-diffusion file."""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.defenses.diffusion.diffusers_model import content_of, denoiser_of, files_of, folder_of, on_hub
from bench.defenses.diffusion.improved_unet import ImprovedUNet, Shape
from bench.defenses.diffusion.schedule import Denoiser, cosine_schedule, one_shot, step_for
from bench.defenses.diffusion.unet import MULTIPLE, fit_unet, new_unet
from bench.defenses.diffusion.weights import checked, digest, in_words, refused, state
from bench.plugin import BadInput, Images, Services, TrialFailed, derive, open_regular

FIT = "fit"
States = tuple[tuple[int, int], ...]


def fitted(public: Images, width: int, steps: int, batch: int, services: Services) -> Denoiser:
    """The small U-Net, trained on public images: shared by all trials, noise levels and variants of a study."""
    inputs = {"source": FIT, "public": public.digest, "width": width, "steps": steps, "batch": batch}
    untrained = new_unet(width, 0).to(public.images.device)
    denoiser = Denoiser(untrained.noise, untrained.alphas, inputs, FIT, MULTIPLE)
    denoiser.must_take(public.images.shape[2])
    arguments = (public.images, width, steps, batch, derive(0, "denoiser"), services.report)
    weights = services.keep("denoiser", inputs, lambda: dict(fit_unet(*arguments).state_dict()), external=True)
    untrained.load_state_dict(weights)
    untrained.requires_grad_(False).eval()
    return denoiser


def outside(source: str, revision: str = "") -> dict[str, Any]:
    """The identity of a denoiser from outside, as JSON: sha256 of its files, the package that reads it, and of one from
    the hub the commit; {} for one that is fitted here. The same wherever it lies. The denoiser is loaded; BadInput in
    one line for one that is broken."""
    if revision and not on_hub(source):
        raise BadInput(
            f"defense.revision '{revision}' is for a model of the hub, and '{source}' is none; fix: leave it out"
        )
    if source == FIT:
        return {}
    loaded(source, torch.device("cpu"), revision)
    return {"denoiser": _content(source, revision)}


def name_by_content(source: str, revision: str = "") -> str:
    """What stands for the source where it must not matter where a file lies: the beginning of its digest. 'fit' and
    models of the hub are called as they are."""
    return source if source == FIT or on_hub(source) else _name(_content(source, revision))


def loaded(source: str, device: torch.device, revision: str = "") -> Denoiser:
    """A denoiser from outside, on `device`, in eval mode. Errors as `outside`."""
    return _loaded(source, revision, str(device), _states(source, revision))


def must_denoise(source: str, revision: str, size: int, noise: float) -> None:
    """BadInput where images of `size` pixels cannot be denoised from `noise` (s), tried on two of them."""
    if source != FIT:
        _try(source, revision, size, noise, _states(source, revision))
    elif size < MULTIPLE or size % MULTIPLE:
        raise BadInput(
            f"defense.source '{FIT}' on images of {size} pixels; allowed: multiples of {MULTIPLE}; fix: other images"
        )


@functools.lru_cache(maxsize=256)
def _try(source: str, revision: str, size: int, noise: float, states: States) -> None:
    """Once for each denoiser, size and noise: a command may have thousands of cells."""
    denoiser = loaded(source, torch.device("cpu"), revision)
    chance = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, size, size, generator=chance)
    try:
        denoiser.must_take(size)
        one_shot(denoiser, pixels, torch.randn(pixels.shape, generator=chance), step_for(denoiser.alphas, noise))
    except TrialFailed as error:
        raise BadInput(f"defense.source: {error}") from None
    except Exception as error:  # the layers of a configuration may not go together in any way
        raise refused(source, f"cannot denoise images of {size} pixels ({in_words(error)})") from None


def _states(source: str, revision: str) -> States:
    """The key under which a denoiser is remembered: one whose files change is read again."""
    if not source.endswith(".pt"):
        return tuple(map(state, files_of(folder_of(source, revision))))
    if not Path(source).is_file():
        raise BadInput(f"defense.source: file not found: '{source}'; fix: the path of a checkpoint")
    return (state(Path(source)),)


def _content(source: str, revision: str) -> dict[str, Any]:
    if source.endswith(".pt"):
        return {"format": "improved-diffusion", "files": {"checkpoint": digest(Path(source))}}
    folder = folder_of(source, revision)
    # The hub's cache has a folder for every commit.
    return {**content_of(folder), **({"revision": folder.name} if on_hub(source) else {})}


def _name(content: dict[str, Any]) -> str:
    files = json.dumps(content["files"], sort_keys=True)
    return f"{content['format']}:{hashlib.sha256(files.encode()).hexdigest()[:12]}"


@functools.lru_cache(maxsize=2)  # one that was tried on the CPU may work on a GPU
def _loaded(source: str, revision: str, device: str, states: States) -> Denoiser:
    content = _content(source, revision)
    content.pop("revision", None)  # the files say what they are
    identity = {"source": source if on_hub(source) else _name(content), **content}
    if source.endswith(".pt"):
        return _of_checkpoint(source, identity, torch.device(device))
    return denoiser_of(folder_of(source, revision), source, identity, torch.device(device))


# A checkpoint of improved-diffusion: the unconditional CIFAR-10 model, 4000 cosine steps.


def _of_checkpoint(source: str, identity: dict[str, Any], device: torch.device) -> Denoiser:
    try:
        with open_regular(source) as file, warnings.catch_warnings(action="ignore"):
            # weights_only: nothing in it is executed
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken or hostile file leads to
        raise refused(source, f"is not a checkpoint of tensors ({type(error).__name__})") from None
    with torch.device("meta"):  # no weights are drawn
        network = ImprovedUNet(Shape())
    what = "an improved-diffusion model of CIFAR-10 (128 channels, 3 blocks)"
    network.load_state_dict(checked(source, what, tensors, network.state_dict()), assign=True)
    network.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Denoiser(functools.partial(_learned_sigma, network), cosine_schedule(), identity, source, size=32)


def _learned_sigma(network: ImprovedUNet, x: Tensor, step: int) -> Tensor:
    """The noise: the first three channels. The network counts 4000 steps on the scale of 1000."""
    return network(x, torch.full((len(x),), step * 1000 / 4000, device=x.device))[:, :3]

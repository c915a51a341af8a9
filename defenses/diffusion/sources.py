"""Where a denoiser comes from: fitted here on public images, a diffusers model, or an improved-diffusion file."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.defenses.diffusion.improved_unet import ImprovedUNet, Shape, differences
from bench.defenses.diffusion.schedule import Denoiser, cosine_schedule
from bench.defenses.diffusion.unet import MULTIPLE, fit_unet, new_unet
from bench.plugin import BadInput, Images, Services, TrialFailed, derive

FIT = "fit"
HUB_ID = r"[\w.-]+/[\w.-]+"
WEIGHTS = "diffusion_pytorch_model.safetensors"
INSTALL = "pip install 'poisoning-bench[diffusion]'"
PREDICTED = ("epsilon", "v_prediction", "sample")


def fitted(public: Images, width: int, steps: int, batch: int, services: Services) -> Denoiser:
    """The small U-Net, trained on public images: shared by all trials, noise levels and variants of a study."""
    inputs = {"source": FIT, "public": public.digest, "width": width, "steps": steps, "batch": batch}
    untrained = new_unet(width, 0).to(public.images.device)
    denoiser = Denoiser(untrained.noise, untrained.alphas, inputs, MULTIPLE)
    denoiser.must_take(public.images.shape[2])
    arguments = (public.images, width, steps, batch, derive(0, "denoiser"), services.report)
    weights = services.keep("denoiser", inputs, lambda: dict(fit_unet(*arguments).state_dict()), external=True)
    untrained.load_state_dict(weights)
    untrained.requires_grad_(False).eval()
    return denoiser


def outside(source: str, revision: str = "") -> dict[str, Any]:
    """The identity of a denoiser from outside, as JSON: sha256 of its files, the package that reads it, and of one from
    the hub the commit; {} for one that is fitted here. Checks all that can be checked without images; BadInput in one
    line."""
    if revision and not _on_hub(source):
        raise BadInput(
            f"defense.revision '{revision}' is for a model of the hub, and '{source}' is none; fix: leave it out"
        )
    if source == FIT:
        return {}
    if source.endswith(".pt"):
        path = Path(source)
        if not path.is_file():
            raise BadInput(f"defense.source: file not found: '{source}'; fix: the path of a checkpoint")
        _checkpoint(source, *_state(path))
        return {"denoiser": {"format": "improved-diffusion", "files": _digests([path])}}
    folder = _folder(source, revision)
    _configurations(folder)
    commit = {"revision": folder.name} if _on_hub(source) else {}  # the hub's cache has a folder for every commit
    return {"denoiser": {**_content(folder), **commit}}


def _content(folder: Path) -> dict[str, Any]:
    return {"format": "diffusers", "diffusers": metadata.version("diffusers"), "files": _digests(_files(folder))}


def loaded(source: str, device: torch.device, revision: str = "") -> Denoiser:
    """A denoiser from outside, on `device`, in eval mode. Errors as `outside`."""
    outside(source, revision)
    if source.endswith(".pt"):
        return _of_checkpoint(source, str(device), *_state(Path(source)))
    folder = _folder(source, revision)
    return _of_folder(source, str(folder), str(device), tuple(_state(path) for path in _files(folder)))


# A checkpoint of improved-diffusion: the unconditional CIFAR-10 model, 4000 cosine steps.


@functools.lru_cache(maxsize=1)
def _checkpoint(source: str, size: int, changed: int) -> dict[str, Tensor]:
    """The tensors of the file, as float32. weights_only: nothing in it is executed."""
    try:
        tensors = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken or hostile file leads to
        raise BadInput(f"defense.source '{source}' is not a checkpoint of tensors ({type(error).__name__})") from None
    with torch.device("meta"):
        expected = ImprovedUNet(Shape()).state_dict()
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise BadInput(f"defense.source '{source}' is not a checkpoint of named tensors")
    # What was trained on several devices has a prefix; what was stored in half precision cannot take our pixels.
    tensors = {name.removeprefix("module."): value.float() for name, value in tensors.items()}
    if any(not torch.isfinite(value).all() for value in tensors.values()):
        raise BadInput(f"defense.source '{source}' holds NaN or infinity")
    if reasons := differences(expected, tensors):
        more = f", and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        raise BadInput(
            f"defense.source '{source}' is not an improved-diffusion model of CIFAR-10 (128 channels, 3 blocks): "
            f"{reasons[0]}{more}"
        )
    return tensors


@functools.lru_cache(maxsize=1)
def _of_checkpoint(source: str, device: str, size: int, changed: int) -> Denoiser:
    with torch.device("meta"):  # no weights are drawn
        network = ImprovedUNet(Shape())
    network.load_state_dict(_checkpoint(source, size, changed), assign=True)
    network.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    identity = {"source": source, **outside(source)["denoiser"]}
    return Denoiser(functools.partial(_learned_sigma, network), cosine_schedule(), identity, size=32)


def _learned_sigma(network: ImprovedUNet, x: Tensor, step: int) -> Tensor:
    """The noise: the first three channels. The network counts 4000 steps on the scale of 1000."""
    return network(x, torch.full((len(x),), step * 1000 / 4000, device=x.device))[:, :3]


# A model of diffusers: a folder, or the id of one on the hub.


def _on_hub(source: str) -> bool:
    return not source.endswith(".pt") and not Path(source).is_dir() and bool(re.fullmatch(HUB_ID, source))


def _folder(source: str, revision: str) -> Path:
    if util.find_spec("diffusers") is None:
        raise BadInput(f"defense.source '{source}' needs the package diffusers; fix: {INSTALL}")
    if Path(source).is_dir():
        return Path(source)
    if _on_hub(source):
        return _download(source, revision)
    raise BadInput(
        f"defense.source '{source}' not found; allowed: '{FIT}', a diffusers folder, a hub id (owner/name), a .pt file"
    )


@functools.lru_cache(maxsize=4)
def _download(source: str, revision: str) -> Path:
    """The folder of a model on the hub, downloaded unless it is cached; no code, no pickle."""
    from huggingface_hub import snapshot_download

    at = f" at revision '{revision}'" if revision else ""

    try:
        return Path(
            snapshot_download(source, revision=revision or None, allow_patterns=["*config.json", f"*{WEIGHTS}"])
        )
    except Exception as error:  # the network, the hub, an unknown name
        raise BadInput(
            f"defense.source: '{source}'{at} is not a folder and cannot be downloaded ({type(error).__name__}); fix: "
            "download it elsewhere and give its folder"
        ) from None


def _part(folder: Path, name: str) -> Path:
    """Where a pipeline keeps its `unet` or `scheduler`: a folder of that name, or one folder for all."""
    return folder / name if (folder / name).is_dir() else folder


def _files(folder: Path) -> list[Path]:
    """Settings and weights of the network, settings of the schedule."""
    unet, scheduler = _part(folder, "unet"), _part(folder, "scheduler")
    files = [unet / "config.json", unet / WEIGHTS, scheduler / "scheduler_config.json"]
    for file in files:
        if not file.is_file():
            raise BadInput(
                f"defense.source: file not found: '{file}'; fix: a folder of diffusers' save_pretrained (safetensors)"
            )
    return files


def _configurations(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of network and schedule, checked: an unconditional U-Net of three channels that predicts what we can
    turn into noise."""
    config, _, scheduler = _files(folder)
    try:
        network, schedule = (json.loads(file.read_text()) for file in (config, scheduler))
        kind, channels = network["_class_name"], network["in_channels"]
        predicted, classes = schedule.get("prediction_type", "epsilon"), network.get("num_class_embeds")
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise BadInput(f"defense.source: '{config}' or '{scheduler}' is not a configuration of diffusers") from None
    if kind != "UNet2DModel" or channels != 3 or classes is not None:
        raise BadInput(f"defense.source '{folder}' holds {kind}; allowed: an unconditional UNet2DModel of 3 channels")
    if predicted not in PREDICTED:
        raise BadInput(f"defense.source '{folder}' predicts '{predicted}'; allowed: {', '.join(PREDICTED)}")
    return network, schedule


@functools.lru_cache(maxsize=1)
def _of_folder(source: str, folder: str, device: str, states: tuple[tuple[int, int], ...]) -> Denoiser:
    from diffusers import DDPMScheduler, UNet2DModel

    place = Path(folder)
    config, schedule = _configurations(place)
    try:
        with torch.random.fork_rng(devices=[]):  # first weights are drawn, then replaced
            unet = UNet2DModel.from_pretrained(_part(place, "unet"), use_safetensors=True, local_files_only=True)
        alphas = DDPMScheduler.from_pretrained(_part(place, "scheduler"), local_files_only=True).alphas_cumprod
    except Exception as error:  # whatever a broken folder leads to
        raise TrialFailed(f"defense.source '{source}' cannot be loaded: {' '.join(str(error).split())[:200]}") from None
    unet.float().requires_grad_(False).eval().to(device, memory_format=torch.channels_last)
    alphas = alphas.double()
    multiple = 2 ** (len(config["block_out_channels"]) - 1)
    size = config.get("sample_size") or 0
    identity = {"source": source, **_content(place)}
    predict = functools.partial(_of_diffusers, unet, alphas.tolist(), schedule.get("prediction_type", "epsilon"))
    return Denoiser(predict, alphas, identity, multiple, size)


def _of_diffusers(unet: Any, alphas: list[float], predicted: str, x: Tensor, step: int) -> Tensor:
    """The noise in x_t, from what the network predicts; a learned variance (channels 4 to 6) is left out."""
    out: Tensor = unet(x, step).sample[:, :3]
    signal, sigma = alphas[step] ** 0.5, (1 - alphas[step]) ** 0.5
    if predicted == "v_prediction":
        return sigma * x + signal * out
    return (x - signal * out) / sigma if predicted == "sample" else out


# Files.


def _state(path: Path) -> tuple[int, int]:
    """Size and time of the last change: the key under which the content of a file is cached."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _digests(files: list[Path]) -> dict[str, str]:
    return {file.name: _digest(str(file), *_state(file)) for file in files}


@functools.lru_cache(maxsize=64)
def _digest(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

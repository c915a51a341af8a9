"""A denoiser of diffusers: a folder of its `save_pretrained`, or the id of one on the hub.

Two configurations and one safetensors file are read, whose digests are its identity. What diffusers itself would look
for beside them (weights in several files, pickles, quantised ones) is left alone.
"""

from __future__ import annotations

import functools
import json
import re
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.defenses.diffusion.schedule import Denoiser
from bench.defenses.diffusion.weights import checked, digest, in_words, refused
from bench.plugin import BadInput, read_regular

HUB_ID = r"[\w.-]+/[\w.-]+"
WEIGHTS = "diffusion_pytorch_model.safetensors"
INSTALL = "pip install 'poisoning-bench[diffusion]'"
PREDICTED = ("epsilon", "v_prediction", "sample")
MOST_STEPS = 100_000
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Of the layers of attention, before diffusers 0.16; the published models still have them."""


def on_hub(source: str) -> bool:
    return not source.endswith(".pt") and not Path(source).is_dir() and bool(re.fullmatch(HUB_ID, source))


def folder_of(source: str, revision: str) -> Path:
    """Where the model lies, downloaded first if it is on the hub."""
    if util.find_spec("diffusers") is None:
        raise BadInput(f"defense.source '{source}' needs the package diffusers; fix: {INSTALL}")
    if Path(source).is_dir():
        return Path(source)
    if on_hub(source):
        return _download(source, revision)
    raise BadInput(
        f"defense.source '{source}' not found; allowed: 'fit', a diffusers folder, a hub id (owner/name), a .pt file; "
        "fix: one of these"
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


def files_of(folder: Path) -> list[Path]:
    """Settings and weights of the network, settings of the schedule."""
    unet, scheduler = _part(folder, "unet"), _part(folder, "scheduler")
    files = [unet / "config.json", unet / WEIGHTS, scheduler / "scheduler_config.json"]
    for file in files:
        if not file.is_file():
            raise BadInput(
                f"defense.source: file not found: '{file}'; fix: a folder of diffusers' save_pretrained (safetensors)"
            )
    return files


def _part(folder: Path, name: str) -> Path:
    """Where a pipeline keeps its `unet` or `scheduler`: a folder of that name, or one folder for all."""
    return folder / name if (folder / name).is_dir() else folder


def content_of(folder: Path) -> dict[str, Any]:
    """What the model is, as JSON: the digests of its files, and the package that makes a network of them."""
    files = {file.name: digest(file) for file in files_of(folder)}
    return {"format": "diffusers", "diffusers": metadata.version("diffusers"), "files": files}


def denoiser_of(folder: Path, source: str, identity: dict[str, Any], device: torch.device) -> Denoiser:
    """The model as a denoiser, on `device`, in eval mode. BadInput in one line for one that is broken."""
    config, weights, scheduler = files_of(folder)
    network, schedule = _configuration(source, config), _configuration(source, scheduler)
    _check(source, network, schedule)
    unet = _network(source, network, weights).to(device, memory_format=torch.channels_last)
    alphas = _alphas(source, schedule)
    predict = functools.partial(_noise, unet, alphas.tolist(), schedule.get("prediction_type", "epsilon"))
    multiple = 2 ** (len(unet.config["block_out_channels"]) - 1)
    return Denoiser(predict, alphas, identity, source, multiple, _side(source, unet.config["sample_size"]))


def _configuration(source: str, file: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_regular(file, 2**20))
    except (ValueError, RecursionError, OSError) as error:
        raise refused(source, f"has a '{file.name}' that cannot be read ({in_words(error)})") from None
    if not isinstance(found, dict):
        raise refused(source, f"has a '{file.name}' that is no configuration of diffusers")
    return found


def _check(source: str, network: dict[str, Any], schedule: dict[str, Any]) -> None:
    """It must be an unconditional U-Net of three channels that predicts what we can turn into noise."""
    kind, channels = network.get("_class_name"), (network.get("in_channels", 3), network.get("out_channels", 3))
    if kind != "UNet2DModel" or channels not in ((3, 3), (3, 6)) or network.get("num_class_embeds") is not None:
        what = f"holds {kind} of {channels[0]} channels in, {channels[1]} out"
        raise refused(source, what, "an unconditional UNet2DModel of 3 channels (6 out: with their variance)")
    predicted, steps = schedule.get("prediction_type", "epsilon"), schedule.get("num_train_timesteps", 1000)
    if predicted not in PREDICTED:
        raise refused(source, f"predicts '{predicted}'", f"a model that predicts one of {', '.join(PREDICTED)}")
    if not isinstance(steps, int) or not 1 <= steps <= MOST_STEPS:
        raise refused(source, f"has num_train_timesteps = {steps!r}; allowed: 1 to {MOST_STEPS}")


def _side(source: str, size: Any) -> int:
    """The side of the images that it was made for, 0 for any."""
    side = size[0] if isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1] else size or 0
    if not isinstance(side, int) or side < 0:
        raise refused(source, f"has sample_size = {size!r}; allowed: a whole number")
    return side


def _network(source: str, config: dict[str, Any], file: Path) -> Any:
    """The U-Net with the weights of the file, in float32."""
    import safetensors.torch
    from diffusers import UNet2DModel

    try:
        with torch.device("meta"):  # what the configuration asks for may not fit into the memory
            expected = UNet2DModel.from_config(config).state_dict()
    except Exception as error:  # whatever a broken configuration leads to
        raise refused(source, f"has a 'config.json' that no network can be made of ({in_words(error)})") from None
    try:
        tensors = safetensors.torch.load(read_regular(file))
    except Exception as error:  # whatever a broken file leads to
        raise refused(source, f"has weights that cannot be read ({in_words(error)})") from None
    renamed = {".".join(OLD_NAMES.get(part, part) for part in name.split(".")): tensors[name] for name in tensors}
    weights = checked(source, "the network of its config.json", renamed, expected)
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, then replaced
        unet = UNet2DModel.from_config(config)
    unet.load_state_dict(weights)
    return unet.float().requires_grad_(False).eval()


def _alphas(source: str, config: dict[str, Any]) -> Tensor:
    from diffusers import DDPMScheduler

    try:
        alphas: Tensor = DDPMScheduler.from_config(config).alphas_cumprod.double()
        falls = bool(((alphas >= 0) & (alphas <= 1)).all() and (alphas.diff() <= 0).all())
    except Exception as error:  # whatever a broken configuration leads to
        raise refused(source, f"has a 'scheduler_config.json' that gives no schedule ({in_words(error)})") from None
    if not falls:  # NaN is not in the range either
        raise refused(source, "has a 'scheduler_config.json' whose share of the image does not fall from 1 to 0")
    return alphas


def _noise(unet: Any, alphas: list[float], predicted: str, x: Tensor, step: int) -> Tensor:
    """The noise in x_t, from what the network predicts; a learned variance (channels 4 to 6) is left out."""
    out: Tensor = unet(x, step).sample[:, :3]
    signal, sigma = alphas[step] ** 0.5, (1 - alphas[step]) ** 0.5
    if predicted == "v_prediction":
        return sigma * x + signal * out
    return (x - signal * out) / sigma if predicted == "sample" else out

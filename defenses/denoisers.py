"""Where a denoiser comes from: fitted here on public pictures, a diffusers folder, or an improved-diffusion file."""

from __future__ import annotations

from torch import Tensor

from bench.datasets.base import Images
from bench.seeds import derive
from defenses.base import Services
from defenses.diffusion import Denoiser
from defenses.unet import MULTIPLE, fit_unet, new_unet

FIT = "fit"


def fitted(public: Images, width: int, steps: int, batch: int, services: Services) -> Denoiser:
    """The small U-Net, trained on public pictures: one for all trials, noise levels and variants of a study."""
    inputs = {"source": FIT, "public": public.digest, "width": width, "steps": steps, "batch": batch}
    size = public.images.shape[2]
    untrained = new_unet(width, 0).to(public.images.device)
    found = Denoiser(untrained.noise, untrained.alphas, inputs, MULTIPLE)
    found.must_take(size)
    seed = derive(0, "denoiser")

    def make() -> dict[str, Tensor]:
        return dict(fit_unet(public.images, width, steps, batch, seed, services.report).state_dict())

    untrained.load_state_dict(services.keep("denoiser", inputs, make, external=True))
    untrained.requires_grad_(False).eval()
    return found

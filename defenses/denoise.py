"""Diffusion denoising: noise is added to the training images and removed by one call of a diffusion model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from bench.defenses.diffusion.schedule import (
    Denoiser,
    denoise_images,
    names_by_content,
    noise_by_name,
    noise_of,
    one_shot,
    step_for,
)
from bench.defenses.diffusion.sources import FIT, fitted, loaded, must_denoise, name_by_content, outside
from bench.plugin import (
    Classifier,
    Defense,
    Field,
    Images,
    Job,
    ModelPredictor,
    Predictor,
    Run,
    Services,
    Settings,
    Trained,
    TrialFailed,
    build_model,
    code_fingerprint,
    derive,
    find,
    register,
    train,
)


class DenoiseSettings(Settings):
    """Noise levels and variants of the paper: sections 4.1 and 4.2."""

    sigma: float = Field(0.25, ge=0.025, le=1, description="noise, in units of pixels in [0, 1]")
    scale: Literal[1, 2] = Field(
        2,
        description="noise on pixels in [-1, 1], as a multiple of sigma; 2: the same noise; 1: the released code",
    )
    source: str = Field(
        FIT,
        description="the denoiser: 'fit' (trained here on public images), a diffusers folder or hub id "
        "(google/ddpm-cifar10-32), or a checkpoint of improved-diffusion (.pt)",
    )
    revision: str = Field("", description="of a hub id: a commit, tag or branch (empty: the newest)")
    warm_start: float = Field(0.0, ge=0, lt=1, description="share of the epochs on the raw set first (paper: 0.25)")
    init: Literal["fresh", "pretrained"] = Field(
        "fresh", description="initial weights: the victim's own, or features learned on public images"
    )
    denoise_test: bool = Field(False, description="denoise test images too; the alternative is recorded as a variant")
    width: int = Field(32, ge=8, le=512, multiple_of=8, description="channels of the fitted U-Net")
    steps: int = Field(3000, ge=1, le=10_000_000, description="training steps of the fitted U-Net")
    batch: int = Field(64, ge=1, le=65536, description="images per training step of the fitted U-Net")
    chunk: int = Field(256, ge=1, le=65536, description="images denoised at once; affects results by rounding only")


class DenoisedImages:
    """A classifier that sees denoised images.

    An image's noise is drawn from its content: the same image always gets the same noise, whatever else is in the
    batch, and different images get independent noise, so that no single draw decides for all of them.
    """

    def __init__(self, inner: Predictor, denoiser: Denoiser, step: int, seed: int, chunk: int) -> None:
        self.inner, self.denoiser, self.step, self.seed, self.chunk = inner, denoiser, step, seed, chunk

    def scores(self, pixels: Tensor) -> Tensor:
        cleaned = [
            one_shot(self.denoiser, images, noise_by_name(self.seed, names_by_content(images), images), self.step)
            for images in pixels.split(self.chunk)
        ]
        return self.inner.scores(torch.cat(cleaned))


class WithVariants:
    """A predictor, and other ways to use what was trained, evaluated alongside it."""

    def __init__(self, headline: Predictor, variants: dict[str, Predictor]) -> None:
        self.headline, self.variants = headline, variants

    def scores(self, pixels: Tensor) -> Tensor:
        return self.headline.scores(pixels)


@register("defense", "denoise-0.1", sigma=0.1)
@register("defense", "denoise-0.25", sigma=0.25)
@register("defense", "denoise-0.5", sigma=0.5)
@register("defense", "denoise-1.0", sigma=1.0)
@register("defense", "denoise-0.25-warm", sigma=0.25, warm_start=0.25)
class Denoise(Defense):
    """Diffusion denoising (Hong, Carlini, Kurakin: "... as a Certified Defense against Clean-Label Poisoning"), without
    the certificate.

    Gaussian noise of standard deviation sigma is added to the training set, which is denoised by one call of a
    diffusion model, then trained on as usual; the test images are left alone (both variants are recorded).
    `warm_start`: the first epochs train on the raw set. `init = pretrained`: the features start from a training on
    public images; the paper starts from torchvision's ImageNet ResNet-18, whose stem differs from that of the ResNet-18
    for small images, so that it cannot be loaded here.

    Threat model: any small change of the training images. Assumes: a diffusion model, which is outside knowledge; one
    that was trained on CIFAR-10 has seen the clean twins of the poisons, which is more than other defenses know.
    Nothing is certified: that takes many trainings and votes. Cost: one call of the network per image; `source = fit`
    first trains a small U-Net on public images, once per study (minutes on a CPU).
    """

    Settings = DenoiseSettings
    settings: DenoiseSettings
    needs = ("external_model",)

    @property
    def wants_public(self) -> bool:
        return self.settings.source == FIT or self.settings.init == "pretrained"

    def external(self) -> dict[str, Any]:
        return outside(self.settings.source, self.settings.revision)

    def by_content(self) -> dict[str, str]:
        name = name_by_content(self.settings.source, self.settings.revision)
        return {} if name == self.settings.source else {"source": name}

    def must_take(self, size: int) -> None:
        settings = self.settings
        must_denoise(settings.source, settings.revision, size, settings.scale * settings.sigma)

    def jobs(self, data: Images, services: Services) -> Iterable[Job]:
        # With a warm start the training begins on the raw set; `epoch` replaces it with the denoised one.
        yield Job(data if self.settings.warm_start else self._denoised(data, services))

    def epoch(self, run: Run, epoch: int) -> None:
        assert run.services is not None
        if epoch == 0 and self.settings.init == "pretrained":
            self._initialise(run, run.services)
        raw = min(round(self.settings.warm_start * run.recipe.epochs), run.recipe.epochs - 1)
        if self.settings.warm_start and epoch == raw:
            run.data = self._denoised(run.data, run.services)

    def finish(self, trained: Sequence[Trained], services: Services) -> Predictor:
        model = trained[0].model
        denoiser = self._denoiser(services, next(model.parameters()).device)
        raw = ModelPredictor(model)
        seed = derive(services.seed, "test pictures")
        denoised = DenoisedImages(raw, denoiser, self._step(denoiser), seed, self.settings.chunk)
        if self.settings.denoise_test:
            return WithVariants(denoised, {"raw test images": raw})
        return WithVariants(raw, {"denoised test images": denoised})

    def _denoiser(self, services: Services, device: torch.device) -> Denoiser:
        settings = self.settings
        if settings.source != FIT:
            return loaded(settings.source, device, settings.revision)
        return fitted(_public(services), settings.width, settings.steps, settings.batch, services)

    def _step(self, denoiser: Denoiser) -> int:
        return step_for(denoiser.alphas, self.settings.scale * self.settings.sigma)

    def _denoised(self, data: Images, services: Services) -> Images:
        """The training set, denoised: cached for all trials and defenses that start from the same one."""
        denoiser = self._denoiser(services, data.images.device)
        denoiser.must_take(data.images.shape[2])
        step = self._step(denoiser)
        services.note(
            "denoise", {"step": step, "steps": len(denoiser.alphas), "noise": float(noise_of(denoiser.alphas)[step])}
        )
        inputs = {
            "data": data.digest,
            "denoiser": denoiser.identity,
            "sigma": self.settings.sigma,
            "scale": self.settings.scale,
        }
        seed = derive(0, "denoise", json.dumps(inputs, sort_keys=True))
        arguments = (denoiser, data.images, data.ids, step, seed, self.settings.chunk, services.report)
        denoised = services.keep("denoised images", inputs, lambda: {"images": denoise_images(*arguments)})
        return data.with_images(denoised["images"])

    def _initialise(self, run: Run, services: Services) -> None:
        """Give the victim's network features that were learned on the public images, with their own classes."""
        public, normalise = _public(services), run.model.normalise
        mean, std = (tuple(values.flatten().tolist()) for values in (normalise.mean, normalise.std))
        inputs = {
            "model": services.model,
            "code": code_fingerprint(find("model", services.model).make),
            "public": public.digest,
            "recipe": services.recipe.as_dict(),
            "normalisation": [mean, std],
        }
        seed = derive(0, "pretrained", services.model)
        network = build_model(
            services.model,
            classes=int(public.labels.max()) + 1,
            size=public.images.shape[2],
            normalisation=(mean, std),
            seed=seed,
            device=run.device,
        )

        arguments = (network, public, seed, services)
        weights = services.keep("pretrained features", inputs, lambda: _pretrained(*arguments), external=True)
        network.load_state_dict(weights)
        try:
            run.model.take_features(network)
        except RuntimeError:
            raise TrialFailed(
                f"defense '{self.name}': init = pretrained, but another defense has replaced the layers of the network"
            ) from None


def _pretrained(network: Classifier, public: Images, seed: int, services: Services) -> dict[str, Tensor]:
    """The weights of the network, trained on the public images with the victim's recipe."""

    def report(epoch: int, epochs: int, _: dict[str, float]) -> None:
        services.report("pretraining", epoch, epochs)

    return dict(train(network, public, services.recipe, seed=seed, report=report).model.state_dict())


def _public(services: Services) -> Images:
    if services.public is None:
        raise TrialFailed("there are no public images to train an external model on")
    return services.public()

"""Poisons: uint8 from birth, so that victims train on exactly what is stored and exported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.science.dataset import Images

NOT_A_TEST_IMAGE = -1


@dataclass(frozen=True)
class Shown:
    """What the attacker shows to the victim instead of the target images as they stand: images with a trigger, or
    images that came with imported poisons.

    images: uint8 [m, 3, h, w], trigger and all; ids: int64 [m], the test images that they were made from, -1 where
    that is not known; patch: uint8 [3, p, p] and places: int64 [m, 2] (x, y of its upper left corner), or None.
    """

    images: Tensor
    ids: Tensor
    patch: Tensor | None = None
    places: Tensor | None = None


@dataclass(frozen=True)
class Poisons:
    """Changed training images.

    images: uint8 [n, 3, h, w]; ids: int64 [n], the training ids that they replace; labels: int64 [n], unchanged
    (clean-label); provenance: how they were made (attack, settings, losses), JSON types only; shown: what the victim is
    judged on, or None for the trial's targets as they stand.
    """

    images: Tensor
    ids: Tensor
    labels: Tensor
    provenance: dict[str, Any] = field(default_factory=dict)
    shown: Shown | None = None

    @classmethod
    def from_perturbation(
        cls, bases: Images, delta: Tensor, eps: int, provenance: dict[str, Any] | None = None
    ) -> Poisons:
        """Quantise bases + delta. delta: float [n, 3, h, w], pixels in [0, 1]; eps: levels of 255.

        Rounds half up, then clips to the eps ball and to 0..255 in whole levels, so that the ball holds exactly.
        ValueError for a delta that is not finite.
        """
        if not torch.isfinite(delta).all():
            raise ValueError("the perturbation holds NaN or infinity")
        base = bases.images.cpu()
        levels = torch.floor(base.double() + delta.detach().cpu().double() * 255 + 0.5).long()
        low, high = (base.long() - eps).clamp(min=0), (base.long() + eps).clamp(max=255)
        images = torch.maximum(torch.minimum(levels, high), low).to(torch.uint8)
        return cls(images, bases.ids.cpu(), bases.labels.cpu(), provenance or {})

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, as they are stored."""
        found = {"images": self.images, "ids": self.ids, "labels": self.labels}
        if self.shown is not None:
            parts = {name: getattr(self.shown, name) for name in ("images", "ids", "patch", "places")}
            found |= {f"shown.{name}": value for name, value in parts.items() if value is not None}
        return found

    @classmethod
    def of_tensors(cls, tensors: dict[str, Tensor], provenance: dict[str, Any]) -> Poisons:
        """The inverse of `tensors`. KeyError when a part is missing."""
        parts = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith("shown.")}
        shown = Shown(parts["images"], parts["ids"], parts.get("patch"), parts.get("places")) if parts else None
        return cls(tensors["images"], tensors["ids"], tensors["labels"], provenance, shown)

    def distance(self, clean: Images) -> int:
        """Largest change of a pixel against the clean training set, in levels of 255."""
        base = clean.images[clean.rows_of(self.ids)]
        return int((self.images.long() - base.cpu().long()).abs().max()) if len(self.ids) else 0

    def check(self, clean: Images, eps: int, allowed: Tensor, most: int | None = None) -> None:
        """ValueError unless these are clean-label poisons of `allowed` ids within eps (checked after rounding), no more
        than `most` of them."""
        if most is not None and len(self.ids) > most:
            raise ValueError(f"{len(self.ids)} poisons, more than the {most} of the budget")
        if len(self.ids) != len(torch.unique(self.ids)):
            raise ValueError("a training id is poisoned twice")
        if not torch.isin(self.ids, allowed).all():
            raise ValueError("a poison replaces an image that the attacker was not given")
        rows = clean.rows_of(self.ids)
        if not torch.equal(clean.labels[rows].cpu(), self.labels):
            raise ValueError("a poison changes a label: the attack is not clean-label")
        if self.images.shape[1:] != clean.images.shape[1:] or self.images.dtype != torch.uint8:
            raise ValueError(
                f"poisons are {self.images.dtype} {tuple(self.images.shape[1:])}, not like the training set"
            )
        found = self.distance(clean)
        if found > eps:
            raise ValueError(f"a poison moves a pixel by {found}/255, more than eps = {eps}/255")

    def applied_to(self, train: Images) -> Images:
        """The training set with these poisons in place; `train` itself is left alone."""
        images = train.images.clone()
        images[train.rows_of(self.ids.to(train.ids.device))] = self.images.to(train.images.device)
        return train.with_images(images)

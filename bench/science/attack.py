"""What an attack is: typed settings and one verb, `craft`.

class MySettings(Settings): ...

@register("attack", "my-attack")
class MyAttack(Attack):
    '''Card: paper, threat model, assumed knowledge, cost.'''

    Settings = MySettings

    def craft(self, scene: Scene) -> Poisons: ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from bench.foundation.settings import Settings as AnySettings
from bench.science.augmentation import Augmentation
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.poisons import Poisons
from bench.science.seeds import torch_stream
from bench.science.threat import Threat, Trial
from bench.science.training import to_pixels
from bench.science.workshop import Workshop


class Surrogates(Protocol):
    """The K networks that the attacker trained: frozen, in eval mode; trained on the first call, or from the store."""

    def __call__(self) -> Sequence[Classifier]: ...


class ReportStep(Protocol):
    """Shows progress: `done` steps of `total`, and figures of the last one such as its loss."""

    def __call__(self, done: int, total: int, figures: dict[str, float], /) -> None: ...


@dataclass(frozen=True)
class Scene:
    """What the attacker has in one trial.

    train: the victim's clean training set, on the device; bases: the images that may be changed, in trial order;
    targets: uint8 images [t, 3, h, w] to be misclassified; augmentation: the victim's; seed: the attack's own in this
    trial; surrogates, report: see their types; workshop: what else the attacker may have made.
    """

    train: Images
    bases: Images
    targets: Tensor
    trial: Trial
    threat: Threat
    augmentation: Augmentation
    surrogates: Surrogates
    seed: int
    report: ReportStep
    workshop: Workshop = field(default_factory=Workshop)

    @property
    def device(self) -> torch.device:
        return self.train.images.device

    @property
    def eps(self) -> float:
        """The largest change of a pixel, in [0, 1]."""
        return self.threat.eps / 255

    def stream(self, *names: str | int) -> torch.Generator:
        """The attack's own random stream on the device."""
        return torch_stream(self.device, self.seed, *names)

    def choosing(self, rows: Tensor) -> Scene:
        """The scene with other bases: the images of scene.train at `rows`. For attacks with `selects_bases`."""
        return replace(self, bases=self.train.subset(rows))

    @property
    def adversarial_rows(self) -> Tensor:
        """Rows of scene.train that are of the target class."""
        return torch.nonzero(self.train.labels == self.trial.target_class).flatten()

    def base_pixels(self) -> Tensor:
        """The bases, float [n, 3, h, w] in [0, 1]."""
        return to_pixels(self.bases.images)

    def poisons(self, delta: Tensor, **provenance: object) -> Poisons:
        """Round bases + delta (float, [0, 1] units) to uint8 within eps; `provenance` goes into the record."""
        return Poisons.from_perturbation(self.bases, delta, self.threat.eps, dict(provenance))


CONTROL = {False: "none", True: "none-trigger"}
"""The clean control of an attack, by whether the attack shows a trigger."""


class Attack(ABC):
    """Base of all attacks. `__init__` only stores the settings; `craft` is the algorithm.

    uses_surrogates: whether `craft` calls scene.surrogates; poisons_data: False for a control that poisons nothing;
    crafts: False when the poisons come from elsewhere;
    selects_bases: whether it picks its own bases among all images of the target class (Sleeper Agent).
    """

    Settings: ClassVar[type[AnySettings]] = AnySettings
    by_scenario: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """As of a defense."""
    uses_surrogates: ClassVar[bool] = True
    poisons_data: ClassVar[bool] = True
    selects_bases: ClassVar[bool] = False
    crafts: ClassVar[bool] = True

    def __init__(self, settings: AnySettings) -> None:
        self.settings = settings

    @property
    def shows_trigger(self) -> bool:
        """Whether victims are evaluated on all test images of the source class with the threat model's trigger on them,
        instead of on the target images. May depend on the settings."""
        return False

    @property
    def snapshots(self) -> tuple[int, ...]:
        """Epochs of the surrogates' training whose weights `scene.workshop.snapshots` hands out; empty: none."""
        return ()

    @property
    def builds_on(self) -> tuple[tuple[str, str], ...]:
        """Other plug-ins, as (kind, name), that `scene.workshop` may use for it: they shape the poisons too."""
        return ()

    @abstractmethod
    def craft(self, scene: Scene) -> Poisons:
        """Make the poisons of one trial: deterministic in scene.seed, within eps, labels unchanged."""

"""The threat model, and the drawing of a trial: who is attacked, as what, and with which training images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bench.foundation.errors import BadInput, TrialFailed, nearest
from bench.foundation.settings import Settings
from bench.science.dataset import Dataset, Images
from bench.science.seeds import numpy_stream
from bench.science.trigger import Trigger, colour_patch


class Threat(Settings):
    """What the attacker may do. Defaults: FRIENDS section 4.2 (gray box: architecture known, weights not)."""

    scenario: Literal["from-scratch", "transfer", "finetune"] = Field(
        "from-scratch",
        description="how the victim is trained: from scratch; transfer: a new linear head on frozen features of a "
        "pretrained network; finetune: a pretrained network with a new head, all layers",
    )
    eps: int = Field(16, ge=1, le=255, description="largest change of a pixel, in levels of 255 (L-infinity)")
    budget: float = Field(0.01, gt=0, le=1, description="share of the victim's training set that is poisoned")
    targets: int = Field(1, ge=1, le=1000, description="test images to be misclassified in a trial")
    per_class: int = Field(
        0,
        ge=0,
        description="images of each class in the victim's training set: the bases of the trial and the first others "
        "of the data set (0: the whole data set)",
    )
    surrogate: str = Field(
        "",
        description="architecture that the attacker uses; several with commas are taken in turn; empty: the victim's",
    )
    white_box: bool = Field(
        True, description="transfer, finetune: a surrogate of the victim's architecture has the victim's own features"
    )
    surrogates: int = Field(1, ge=1, le=100, description="K, how many surrogates the attacker has")
    patch: int = Field(0, ge=0, le=256, description="side of the trigger, pixels (0: a quarter of the image)")
    patch_seed: int = Field(0, ge=0, description="which trigger, of random colours")
    holdout: float = Field(
        0.05, gt=0, le=0.5, description="share of the training set that a defender knows to be clean, if he asks for it"
    )
    placement: Literal["random", "corner"] = Field("random", description="where a trigger is pasted")
    pair: str = Field(
        "",
        description="names of two classes, with a comma: images of the first are to be taken for the second in every "
        "trial; empty: drawn in each",
    )
    eligible: Literal["any", "correct"] = Field(
        "any",
        description="which test images of the source class may be targets: any, or only those that a clean network "
        "classifies correctly; it is trained once for all trials, as the victim is. Triggers are shown on all images "
        "of the class either way (`asr_conditional` counts those that the victim itself classifies correctly)",
    )

    @property
    def architectures(self) -> tuple[str, ...]:
        """The architectures of `surrogate`, in turn; empty for the victim's."""
        return tuple(name.strip() for name in self.surrogate.split(",")) if self.surrogate else ()

    def pair_of(self, dataset: Dataset) -> tuple[int, int] | None:
        """The classes of `pair`, None if they are drawn. BadInput for names that the data set does not have."""
        if not self.pair:
            return None
        names = [name.strip() for name in self.pair.split(",")]
        for name in names:
            if name not in dataset.classes:
                raise BadInput(f"threat.pair: '{dataset.name}' has no class '{name}'{nearest(name, dataset.classes)}")
        if len(names) != 2 or names[0] == names[1]:
            raise BadInput(f"threat.pair '{self.pair}'; allowed: two different classes, such as '{_example(dataset)}'")
        return dataset.classes.index(names[0]), dataset.classes.index(names[1])

    def trigger(self, size: int) -> Trigger:
        """The trigger of backdoor attacks on images of `size` pixels."""
        return Trigger(colour_patch(self.patch or max(size // 4, 1), self.patch_seed), self.placement)

    def poisons(self, n: int) -> int:
        """How many of n training images may be poisoned: ceil(budget n), as the Witches' Brew code counts."""
        return math.ceil(self.budget * n - 1e-9)


@dataclass(frozen=True)
class Trial:
    """One draw: make `target_ids` (test ids, all of class `source_class`) be classified as `target_class` by
    changing `base_ids` (train ids, all of class `target_class`: the attack is clean-label)."""

    index: int
    target_ids: Tensor
    source_class: int
    target_class: int
    base_ids: Tensor

    def as_dict(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "target_ids": self.target_ids.tolist(),
            "source_class": self.source_class,
            "target_class": self.target_class,
            "base_ids": self.base_ids.tolist(),
        }


def _example(dataset: Dataset) -> str:
    return ",".join(dataset.classes[:2])


def victim_size(dataset: Dataset, threat: Threat) -> int:
    """How many images the victim trains on."""
    return threat.per_class * len(dataset.classes) if threat.per_class else len(dataset.train)


def check_budget(dataset: Dataset, threat: Threat) -> None:
    """BadInput unless every class has images enough for the budget and for the targets, the trigger fits, and the data
    set has the classes of the pair."""
    threat.pair_of(dataset)
    size = dataset.train.images.shape[2]
    if threat.patch > size:
        raise BadInput(f"threat.patch {threat.patch}: the images have {size} pixels; allowed: at most {size}")
    smallest = int(torch.bincount(dataset.train.labels, minlength=len(dataset.classes)).min())
    if threat.per_class > smallest:
        raise BadInput(f"threat.per_class {threat.per_class}: the smallest class has only {smallest} training images")
    n = victim_size(dataset, threat)
    count, smallest = threat.poisons(n), threat.per_class or smallest
    if count > smallest:
        most = math.floor(1e4 * smallest / n) / 1e4
        raise BadInput(
            f"threat.budget {threat.budget:g} asks for {count} poisons of one class, but the smallest class of "
            f"'{dataset.name}' has {smallest} training images; allowed: at most {most:g}"
        )
    fewest = int(torch.bincount(dataset.test.labels, minlength=len(dataset.classes)).min())
    if threat.targets > fewest:
        raise BadInput(f"threat.targets {threat.targets}: the smallest class has only {fewest} test images")


def draw_trial(dataset: Dataset, threat: Threat, seed: int, index: int, right: Tensor | None = None) -> Trial:
    """Draw trial `index` of a study: uniform source class, another class as adversarial (unless the threat model names
    both), distinct random bases of it.

    This is the single-class threat model of Witches' Brew: bases come from the target class.
    Trial i does not depend on how many trials are run, nor on attack or defense. right: the only test ids that may be
    targets; the classes, the bases and every target that is among them stay as they would be without it. TrialFailed
    when there are too few.
    """
    check_budget(dataset, threat)
    chance = numpy_stream(seed, "trial", index)
    count = len(dataset.classes)
    source_class = int(chance.integers(count))
    target_class = int((source_class + 1 + chance.integers(count - 1)) % count)
    source_class, target_class = threat.pair_of(dataset) or (source_class, target_class)
    of_true = dataset.test.ids[dataset.test.labels == source_class].numpy()
    of_adversarial = dataset.train.ids[dataset.train.labels == target_class].numpy()
    targets = chance.choice(of_true, size=threat.targets, replace=False)
    bases = chance.choice(of_adversarial, size=threat.poisons(victim_size(dataset, threat)), replace=False)
    if right is not None:
        # The targets and the others in random order are all images of the class in random order.
        others = numpy_stream(seed, "trial", index, "others").permutation(np.setdiff1d(of_true, targets))
        in_order = np.concatenate([targets, others])
        targets = in_order[np.isin(in_order, right.numpy())][: threat.targets]
        if len(targets) < threat.targets:
            raise TrialFailed(
                f"the clean network classifies {len(targets)} test images of class '{dataset.classes[source_class]}' "
                f"right, but a trial needs {threat.targets}; fix: --set threat.eligible=any, or more training epochs"
            )
    return Trial(index, torch.from_numpy(targets), source_class, target_class, torch.from_numpy(bases))


def victim_data(dataset: Dataset, threat: Threat, trial: Trial | None) -> Images:
    """The clean training set of a trial's victim, in the order of the data set.

    With threat.per_class it is, as in the poisoning benchmark (Schwarzschild et al. 2021), the trial's bases and the
    first other images of each class, so many of each class in all. trial None: without regard to bases.
    """
    train = dataset.train
    if not threat.per_class:
        return train
    bases = torch.zeros(0, dtype=torch.long) if trial is None else trial.base_ids
    keep = torch.isin(train.ids, bases)
    for label in range(len(dataset.classes)):
        others = torch.nonzero((train.labels == label) & ~torch.isin(train.ids, bases)).flatten()
        keep[others[: max(threat.per_class - int((keep & (train.labels == label)).sum()), 0)]] = True
    return train.subset(torch.nonzero(keep).flatten())


def draw_holdout(clean: Images, poison_ids: Tensor, share: float, classes: int, chance: torch.Generator) -> Images:
    """The clean images that a defender knows as such: `share` of every class (at least one) of the training set, drawn
    among what the attacker left alone."""
    order = torch.randperm(len(clean), generator=chance)
    order = order[~torch.isin(clean.ids[order], poison_ids)]
    chosen = []
    for label in range(classes):
        count = max(round(share * int((clean.labels == label).sum())), 1)
        chosen.append(order[clean.labels[order] == label][:count])
    return clean.subset(torch.cat(chosen).sort().values)

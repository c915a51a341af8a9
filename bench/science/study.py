"""A study: a protocol and a seed, with the data and the trials that they mean."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

from torch import Tensor

from bench.foundation.errors import BadInput
from bench.foundation.names import of_trial
from bench.foundation.registry import find
from bench.foundation.settings import build
from bench.science.classifier import build_network
from bench.science.dataset import Dataset, Images, Place, check
from bench.science.poisons import Shown
from bench.science.protocol import Protocol, Source
from bench.science.seeds import derive, torch_stream
from bench.science.selection import SelectedAttack
from bench.science.threat import Trial, check_budget, draw_holdout, draw_trial, victim_data


class Listed(Interface):
    """Trials that are listed in a file instead of drawn. digest: sha256 of the list."""

    @property
    def digest(self) -> str: ...
    def indices(self, dataset: Dataset) -> list[int]: ...
    def trial(self, index: int, dataset: Dataset) -> Trial: ...
    def shown(self, index: int, dataset: Dataset) -> Shown | None: ...


@dataclass(frozen=True, eq=False)
class Study:
    """data: where data sets look for files; device: cpu or cuda[:i]; seed: study seed; listed: where the trials come
    from, unless they are drawn; threads: of arithmetic, whose number changes bits on a CPU. Small
    enough to be sent to a worker, where equal studies are one object."""

    protocol: Protocol
    seed: int
    data: Path | None
    device: str
    listed: Listed | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "protocol", self.protocol.on(self.device))  # what keys and records say is what is done

    def __reduce__(self) -> tuple[Any, ...]:
        return _interned, (self.protocol, self.seed, self.data, self.device, self.listed, self.threads)

    @functools.cached_property
    def dataset(self) -> Dataset:
        return _load(self.protocol.dataset, self.data)

    @functools.cached_property
    def pretrain_dataset(self) -> Dataset:
        """What pretrained networks were trained on: the data set itself unless the protocol names another."""
        return _load(self.protocol.pretrain_dataset, self.data)

    @functools.cached_property
    def public_dataset(self) -> Dataset:
        """Images from elsewhere, for a defender's external model: those that the protocol names, or patches of
        photographs. BadInput when they are not of the study's size."""
        source = self.protocol.public_dataset
        if source is None:
            make = find("dataset", "photographs").make
            settings = build(make.Settings, {"size": self.size, "colour": "plain"}, "photographs")
            source = Source("photographs", settings)
        public = check(_load(source, self.data))
        if (size := public.train.images.shape[2]) != self.size:
            raise BadInput(
                f"public_dataset '{source}' has images of {size} pixels, '{self.dataset.name}' of {self.size}; "
                "fix: a data set of the same size"
            )
        return public

    def settings(self) -> dict[str, Any]:
        """Those of the protocol, with its data as records name them: by name, settings and content, not by place."""
        protocol = self.protocol
        settings = {**protocol.as_dict(), "dataset": protocol.dataset.as_dict(self.dataset.fingerprint)}
        if protocol.pretrained:
            settings["pretrain_dataset"] = protocol.pretrain_dataset.as_dict(self.pretrain_dataset.fingerprint)
        return settings

    @property
    def summaries(self) -> list[str]:
        """A line for each data set of a person's own files."""
        loaded = [self.dataset, *([self.pretrain_dataset] if self.protocol.pretrained else [])]
        return [line for line in dict.fromkeys(dataset.summary for dataset in loaded) if line]

    @property
    def size(self) -> int:
        """Side of the images, pixels."""
        return int(self.dataset.train.images.shape[2])

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the channels that the networks of this study normalise with."""
        return (self.pretrain_dataset if self.protocol.pretrained else self.dataset).normalisation

    @functools.cached_property
    def _architectures(self) -> dict[str, Callable[..., Any]]:
        return {}

    def architecture(self, name: str) -> Callable[..., Any]:
        """What makes the layers of the model `name`; looked up once."""
        if name not in self._architectures:
            self._architectures[name] = find("model", name).make
        return self._architectures[name]

    def validate(self) -> None:
        """Everything that can be wrong before long work starts. BadInput in one line."""
        dataset = check(self.dataset)
        check_budget(dataset, self.protocol.threat)
        if self.listed is not None and self.protocol.threat.eligible != "any":
            raise BadInput("threat.eligible=correct: the list brings its own targets; fix: --set threat.eligible=any")
        if self.protocol.pretrained:
            pretraining = check(self.pretrain_dataset)
            if pretraining.train.images.shape[2] != self.size:
                raise BadInput(
                    f"pretrain_dataset '{pretraining.name}' has images of {pretraining.train.images.shape[2]} "
                    f"pixels, '{dataset.name}' of {self.size}; fix: data sets of one size"
                )
        for model in {self.protocol.model, *self.protocol.threat.architectures}:
            build_network(
                model, self.architecture(model), classes=len(dataset.classes), size=self.size,
                normalisation=dataset.normalisation, seed=0,
            )  # fmt: skip
        if self.protocol.train.shift >= self.size:
            raise BadInput(f"train.shift: {self.protocol.train.shift} pixels on images of {self.size}")

    @functools.cached_property
    def _cases(self) -> dict[tuple[int, int], Case]:
        return {}

    def case(self, index: int, victim: int = 0) -> Case:
        """Trial `index` with one of its victims, drawn once."""
        if (index, victim) not in self._cases:
            self._cases[index, victim] = Case(self, index, victim)
        return self._cases[index, victim]

    def draw_by(self, right: Callable[[], Tensor]) -> None:
        """right: gives the ids of the test images that may be targets; comes from whoever has this study's networks."""
        self._right[:] = [right]

    @functools.cached_property
    def _right(self) -> list[Callable[[], Tensor]]:
        return []

    def draw(self, index: int) -> Trial:
        """Trial `index`. BadInput if that takes a trained network and nobody has offered one by `draw_by`."""
        if self.protocol.threat.eligible == "any":
            return draw_trial(self.dataset, self.protocol.threat, self.seed, index)
        if not self._right:
            raise BadInput("threat.eligible=correct: only a run can draw targets; fix: --set threat.eligible=any")
        return draw_trial(self.dataset, self.protocol.threat, self.seed, index, self._right[0]())

    def triggered(self, trial: Trial) -> Shown:
        """All test images of the source class with the trigger; places depend on study and trial, not on the attack."""
        trigger = self.protocol.threat.trigger(self.size)
        test = self.dataset.test.subset(self.dataset.test.labels == trial.source_class)
        places = trigger.places(len(test), self.size, self.seed, "trigger", trial.index)
        return Shown(trigger.paste(test.images, places), test.ids, trigger.patch, places)

    @functools.cached_property
    def attacker_data(self) -> Images:
        """The clean training set of the attacker's networks, which all trials share."""
        return victim_data(self.dataset, self.protocol.threat, None)

    def surrogate_seed(self, k: int) -> int:
        return derive(self.seed, "surrogate", k)


@dataclass(frozen=True, eq=False)
class Case:
    """One trial of a study, with what follows from its draw. victim: which one of those that train on its poisons; only
    the seed of that training depends on it."""

    study: Study
    index: int
    victim: int = 0

    @functools.cached_property
    def trial(self) -> Trial:
        study = self.study
        if study.listed is not None:
            return study.listed.trial(self.index, study.dataset)
        return study.draw(self.index)

    @property
    def drawn(self) -> bool:
        """Whether the trial is known, or can be without training a network."""
        return "trial" in vars(self) or self.study.protocol.threat.eligible == "any"

    @functools.cached_property
    def shown(self) -> Shown | None:
        """What victims of a listed trial are judged on instead of the target images, where the list says so."""
        listed = self.study.listed
        return listed.shown(self.index, self.study.dataset) if listed is not None else None

    @property
    def clean(self) -> Images:
        """The victim's training set before it is poisoned, on the CPU."""
        return victim_data(self.study.dataset, self.study.protocol.threat, self.trial)

    def triggered(self) -> Shown:
        return self.study.triggered(self.trial)

    def holdout(self, clean: Images, poison_ids: Tensor) -> Images:
        """The clean images that a defender knows as such: `clean` is the training set before it was poisoned."""
        share, classes = self.study.protocol.threat.holdout, len(self.study.dataset.classes)
        return draw_holdout(
            clean, poison_ids, share, classes, torch_stream("cpu", self.study.seed, "holdout", self.index)
        )

    def may_poison(self, clean: Images, selects_bases: bool) -> Tensor:
        """Training ids that an attack may change: the bases that were drawn, or, for an attack that selects its bases
        itself, all images of the target class."""
        return clean.ids[clean.labels == self.trial.target_class] if selects_bases else self.trial.base_ids

    def attack_seed(self, attack: SelectedAttack) -> int:
        return derive(self.study.seed, "attack", attack.label, self.index)

    @property
    def victim_seed(self) -> int:
        """The same for every attack and defense, so that cells are compared in pairs."""
        return derive(self.study.seed, "victim", self.index, *([self.victim] if self.victim else []))

    def __str__(self) -> str:
        return of_trial(self.index, self.victim)


_studies: dict[str, Study] = {}


def _interned(*fields: Any) -> Study:
    """The study of these fields in this process: what it has loaded and drawn is there for all tasks."""
    study = Study(*fields)
    return _studies.setdefault(repr(study), study)


@functools.lru_cache(maxsize=4)
def _load(source: Source, data: Path | None) -> Dataset:
    return find("dataset", source.name).make(source.settings, Place(data, source.argument))

"""A victim behind a defense: the trainings that the defense asks for, and what they are judged by."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.foundation import fingerprint
from bench.foundation.errors import TrialFailed
from bench.science.checkpoint import clock, remember
from bench.science.classifier import Classifier
from bench.science.crafting import poisons_of
from bench.science.dataset import Images
from bench.science.defense import Defense, Services
from bench.science.evaluation import FilterQuality, Outcome, evaluate, filter_quality
from bench.science.identity import identities
from bench.science.lending import lent
from bench.science.networks import Fit
from bench.science.poisons import Poisons
from bench.science.seeds import derive
from bench.science.selection import SelectedAttack, SelectedDefense
from bench.science.study import Case
from bench.science.training import Recipe, Trained, train
from bench.science.workspace import Ledger, Workspace, seconds
from bench.storage.store import Artefact, Made, key_of


def train_behind(
    defense: Defense,
    data: Images,
    recipe: Recipe,
    start: Callable[[int], Classifier],
    *,
    seed: int,
    services: Services,
    report: Callable[[int, int, dict[str, float]], None] | None = None,
) -> tuple[list[Trained], Tensor]:
    """The trainings that a defense asks for on `data`, and the ids of all samples that it hands to them and does not
    come to suspect.

    start: makes the network of a job from the seed of its weights. TrialFailed when nothing is left to train on.
    """
    trained, used = [], []
    for number, job in enumerate(defense.jobs(data, services)):
        if len(job.data) == 0:
            raise TrialFailed(f"defense '{defense.name}' left no training sample")
        trained.append(
            train(
                start(derive(seed, "init", number)), job.data, recipe, seed=seed, hooks=defense, job=number,
                services=services, report=report,
            )
        )  # fmt: skip
        used.append(job.data.ids[~torch.isin(job.data.ids, trained[-1].suspected)].cpu())
    if not trained:
        raise TrialFailed(f"defense '{defense.name}' yielded no jobs")
    return trained, torch.cat(used).unique()


@dataclass(frozen=True)
class Verdict:
    """What became of a victim. variants: of other ways to use what was trained; seconds: by part."""

    poisons: Poisons
    crafted: Artefact
    clean: Images
    trained: list[Trained]
    outcome: Outcome
    variants: dict[str, Outcome]
    filtered: FilterQuality
    notes: dict[str, Any]
    seconds: dict[str, float]


def judge(space: Workspace, case: Case, attack: SelectedAttack, defense: SelectedDefense) -> Verdict:
    """Train the victim of a trial behind a defense, on the poisons of an attack, and judge it."""
    poisons, crafted = poisons_of(space, case, attack)
    started = clock()
    defender = Defender(space, case, attack, defense, poisons)
    remember(defender.ledger)
    instance = defense.new()
    with defender.services() as services:
        trained, used = defender.train(instance, services)
        predictor = instance.finish(trained, services)
    trained_at = clock()
    shown, study = poisons.shown or case.shown, space.study
    judged = functools.partial(evaluate, dataset=study.dataset, trial=case.trial, device=study.device, shown=shown)
    outcome = judged(predictor)
    variants = {name: judged(variant) for name, variant in getattr(predictor, "variants", {}).items()}
    return Verdict(
        poisons, crafted, defender.clean, trained, outcome, variants,
        filter_quality(defender.clean.ids, used, poisons.ids), defender.ledger.notes,
        {**defender.seconds(trained_at - started), "evaluate": clock() - trained_at},
    )  # fmt: skip


def trainings(
    space: Workspace,
    case: Case,
    attack: SelectedAttack,
    defense: SelectedDefense,
    watch: Callable[[Defense], Defense] = lambda instance: instance,
) -> list[Trained]:
    """The trainings of a trial's victim, the same as in `judge`, for those who want the networks; nothing is kept.
    watch: puts another defense in place, which looks on."""
    defender = Defender(space, case, attack, defense, poisons_of(space, case, attack)[0])
    with defender.services() as services:
        return defender.train(watch(defense.new()), services)[0]


@dataclass
class Defender:
    """Trains the victim of one trial behind one defense. `services` is what the plug-in may ask for: of the knowledge
    beyond the training set only what it declares."""

    space: Workspace
    case: Case
    attack: SelectedAttack
    defense: SelectedDefense
    poisons: Poisons
    ledger: Ledger = field(default_factory=Ledger)

    @functools.cached_property
    def clean(self) -> Images:
        return self.case.clean

    def __str__(self) -> str:
        return f"{self.attack.label} x {self.defense.label} {self.case}"

    def train(self, instance: Defense, services: Services) -> tuple[list[Trained], Tensor]:
        """The trainings, and the ids of the samples that were used in them."""
        study, networks = self.space.study, self.space.networks
        return train_behind(
            instance,
            self.poisons.applied_to(self.clean).to(study.device),
            study.protocol.train,
            lambda seed: networks.start(networks.start_in_scenario(study.protocol.model, seed)),
            seed=self.case.victim_seed,
            services=services,
            report=lambda epoch, epochs, _: self.space.report(str(self), epoch, epochs),
        )

    @contextlib.contextmanager
    def services(self) -> Iterator[Services]:
        study, case, recipe = self.space.study, self.case, self.space.study.protocol.train
        fit_for_real = Fit(self.space.networks, case.victim_seed, recipe, f"{self}: ", self.ledger.networks.append)
        with lent(fit_for_real, self.report, self.keep, self.note, self.public) as (fit, report, keep, note, public):
            yield Services(
                recipe,
                len(study.dataset.classes),
                fit,
                report,
                study.protocol.model,
                derive(case.victim_seed, "defense", self.defense.label),
                keep,
                note,
                poison_rate=len(case.trial.base_ids) / len(self.clean),
                clean_holdout=case.holdout(self.clean, self.poisons.ids).to(study.device),
                public=public,
            ).only(self.defense.needs)

    def report(self, title: str, done: int, of: int) -> None:
        self.space.report(f"{self}: {title}", done, of)

    def keep(
        self, name: str, inputs: dict[str, Any], make: Callable[[], dict[str, Tensor]], external: bool = False
    ) -> dict[str, Tensor]:
        study = self.space.study
        identity = {**identities(study).cached_by_defense(name, inputs), "code": fingerprint.code(make)}
        artefact = self.space.store.get_or_make("kept", key_of(identity), functools.partial(_timed, identity, make))
        (self.ledger.external if external else self.ledger.networks).append(artefact)
        return {part: tensor.to(study.device) for part, tensor in artefact.tensors.items()}

    def note(self, name: str, value: Any) -> None:
        json.dumps(value, allow_nan=False)  # now, rather than when the record is written
        self.ledger.notes[name] = value

    def public(self) -> Images:
        return self.space.study.public_dataset.train.to(self.space.study.device)

    def seconds(self, took: float) -> dict[str, float]:
        """Of `took` seconds between poisons and predictor: what is the victim's training, with what the defense had
        trained beside as if it had been made now, whoever made it; what the defender could have from elsewhere is no
        part of it."""
        networks, external = self.ledger.networks, self.ledger.external
        new = seconds(networks, only_new=True) + seconds(external, only_new=True)
        return {
            "train": took - new + seconds(networks),
            **({"train.networks": seconds(networks)} if networks else {}),
            **({"external": seconds(external)} if external else {}),
        }


def _timed(identity: dict[str, Any], make: Callable[[], dict[str, Tensor]]) -> Made:
    started = clock()
    return make(), {"identity": identity, "seconds": clock() - started}

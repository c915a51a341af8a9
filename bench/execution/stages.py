"""The stages of a trial, each idempotent: poisons, a victim behind a defense, its record (`networks` has the others).

Every stage asks the store first. What it needs from an earlier stage it takes from the store, or makes it.
"""

from __future__ import annotations

import contextlib
import json
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bench
from bench.execution.poison_image import poison_grid
from bench.foundation import files, fingerprint
from bench.foundation.errors import TrialFailed
from bench.science.attack import Scene
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.defense import Defense, Services
from bench.science.evaluation import evaluate, filter_quality
from bench.science.lending import lent
from bench.science.networks import Networks, Report
from bench.science.poisons import Poisons
from bench.science.protocol import Chosen, choose
from bench.science.seeds import derive, torch_stream
from bench.science.study import Study
from bench.science.training import Trained, train
from bench.science.workshop import Transform, Workshop
from bench.storage.records import SCHEMA, Record, Records
from bench.storage.store import Artefact, Store, key_of


def must_build_on(attack: Chosen, kind: str, name: str) -> None:
    """TrialFailed unless the attack declares the plug-in: poisons are kept under the identity of all they build on."""
    if (kind, name) not in attack.attack().builds_on:
        raise TrialFailed(f"attack '{attack.label}' uses {kind} '{name}'; fix: declare it in `builds_on`")


class Spent(list[Artefact]):
    """Artefacts, and the seconds that they took."""

    @property
    def just_now(self) -> float:
        """Spent now, by whoever is timed around it."""
        return sum(artefact.meta["seconds"] for artefact in self if not artefact.reused)

    @property
    def all_told(self) -> float:
        """Spent when they were made."""
        return sum(artefact.meta["seconds"] for artefact in self)


class Used:
    """What a crafting or a defense used of kept networks and other work, and where its time went."""

    def __init__(self) -> None:
        self.networks = Spent()
        self.external = Spent()
        self.kept: dict[str, bool] = {}
        self.parts: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.parts[name] = self.parts.get(name, 0.0) + time.perf_counter() - started


@dataclass(frozen=True)
class Bench:
    """A study with the places where it keeps things."""

    study: Study
    store: Store
    records: Records
    report: Report

    @classmethod
    def at(cls, study: Study, out: Path, report: Report, say: Callable[[str], None]) -> Bench:
        return cls(study, Store(out / "store", say), Records(out / "records", say), report)

    @property
    def networks(self) -> Networks:
        return Networks(self.study, self.store, self.report)

    # Poisons

    def poisons(self, attack: Chosen, index: int) -> tuple[Poisons, Artefact]:
        """The poisons of a trial, from the store or crafted; checked against the threat model either way."""
        study, trial = self.study, self.study.trial(index)
        identity = study.poisons_identity(attack, index)

        def make() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
            used = Used()
            started = time.perf_counter()
            poisons = attack.attack().craft(self._scene(attack, index, used))
            seconds = time.perf_counter() - started
            if attack.shows_trigger:
                poisons = replace(poisons, shown=study.triggered(trial))
            meta = {
                "identity": identity,
                "provenance": poisons.provenance,
                # What the surrogates took is theirs, whether they were trained just now or long ago.
                "seconds": max(seconds - used.networks.just_now, 0.0),
                "parts": used.parts,
                "surrogate_seconds": used.networks.all_told,
                "surrogates_reused": bool(used.networks) and all(artefact.reused for artefact in used.networks),
                "kept_reused": used.kept,
            }
            return poisons.tensors(), meta

        key = key_of(identity)
        artefact = self.store.get_or_make("poisons", key, make)
        poisons = Poisons.of_tensors(artefact.tensors, artefact.meta["provenance"])
        data = study.victim_data(index)
        poisons.check(data, study.protocol.threat.eps, study.may_poison(attack, index), len(trial.base_ids))
        image = image_path(self.store.root.parent, key)
        if len(poisons.ids) and not image.exists():
            files.write_bytes(image, poison_grid(data.images[data.rows_of(poisons.ids)], poisons.images))
        return poisons, artefact

    def _scene(self, attack: Chosen, index: int, used: Used) -> Scene:
        study, trial = self.study, self.study.trial(index)
        dataset, networks = study.dataset, self.networks
        count = study.protocol.threat.surrogates
        borrowed: list[Classifier] = []

        def surrogates() -> list[Classifier]:
            if not borrowed:
                for k in range(count):
                    network, artefact = networks.surrogate(k)
                    borrowed.append(network)
                    used.networks.append(artefact)
            return borrowed

        def snapshots() -> list[list[Classifier]]:
            found = [networks.snapshots(k, attack.attack().snapshots) for k in range(count)]
            for _, artefact in found:
                used.networks.append(artefact)
            return [snapshot for snapshot, _ in found]

        def retrain(
            data: Images, *who: str | int, which: Sequence[int], behind: str = "", **settings: Any
        ) -> list[Classifier]:
            guard = self._defense(attack, behind, settings) if behind else None
            seed = study.attack_seed(attack, index)
            return [networks.retrained(k, data, who, seed, guard) for k in which]

        def keep(name: str, inputs: dict[str, Any], make: Callable[[], Tensor]) -> Tensor:
            identity = {
                "kind": f"kept {name}",
                "inputs": inputs,
                "data": study.attacker_data.digest,
                "surrogates": [key_of(study.surrogate_identity(k)) for k in range(count)],
                "code": fingerprint.code(make),
            }
            artefact = self.store.get_or_make("kept", key_of(identity), lambda: ({name: make()}, {}))
            used.kept[name] = artefact.reused
            return artefact.tensors[name].to(study.device)

        def transform(defense: str, data: Images, ids: Tensor, **settings: Any) -> Transform:
            seed = derive(study.attack_seed(attack, index), "transform")
            guard, recipe = self._defense(attack, defense, settings), study.protocol.surrogate
            fit, model = networks.fitter(seed, recipe), study.protocol.surrogate_model(0)[0]
            services = Services(recipe, len(dataset.classes), fit, self.report, model)
            stream = torch_stream(study.device, seed, guard.name)
            return guard.published(data, ids, services, stream)

        def poisons_of(name: str, **settings: Any) -> Poisons:
            must_build_on(attack, "attack", name)
            rest = [(f"attack.{key}", value) for key, value in settings.items()]
            (other,) = choose("attack", [name], study.protocol, rest)
            return self.poisons(other, index)[0]

        data = study.victim_data(index).to(study.device)
        what = f"{attack.label} trial {index}"
        return Scene(
            train=data,
            bases=data.subset(data.rows_of(trial.base_ids.to(study.device))),
            targets=dataset.test.images[dataset.test.rows_of(trial.target_ids)].to(study.device),
            trial=trial,
            threat=study.protocol.threat,
            augmentation=study.protocol.train.augmentation(study.normalisation[0]),
            surrogates=surrogates,
            seed=study.attack_seed(attack, index),
            report=lambda step, steps, _: self.report(what, step, steps),
            workshop=Workshop(retrain, snapshots, keep, used.timed, transform, poisons_of),
        )

    def _defense(self, attack: Chosen, name: str, settings: dict[str, Any]) -> Defense:
        """A defense that the attacker knows and uses himself."""
        must_build_on(attack, "defense", name)
        rest = [(f"defense.{key}", value) for key, value in settings.items()]
        (chosen,) = choose("defense", [name], self.study.protocol, rest)
        return chosen.defense()

    # Victims

    def victim(self, attack: Chosen, defense: Chosen, index: int) -> Record:
        """Train the victim of a trial behind a defense, judge it, and put its record in place."""
        wanted = self.study.wanted(attack, defense, index)
        with self.store.lock(wanted["key"]):
            there = self.records.find(wanted)  # by another run on the same output folder
            if there is None:
                there = self.records.write(self._record(wanted, attack, defense, index))
        return there

    def _record(self, wanted: dict[str, Any], attack: Chosen, defense: Chosen, index: int) -> dict[str, Any]:
        study = self.study
        started = datetime.now(UTC)
        if torch.device(study.device).type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        poisons, artefact = self.poisons(attack, index)
        clock = time.perf_counter()
        clean = study.victim_data(index)
        data = poisons.applied_to(clean).to(study.device)
        guard, fits = defense.defense(), Used()
        what = f"{attack.label} x {defense.label} trial {index}"
        notes: dict[str, Any] = {}
        with self._services(what, index, defense, poisons.ids, fits, notes) as services:
            trained, used = self._train_behind(guard, services, data, index, what)
            predictor = guard.finish(trained, services)
        trained_at = time.perf_counter()
        shown = poisons.shown or study.shown(index)
        outcome = evaluate(predictor, study.dataset, study.trial(index), study.device, shown)
        others = {
            name: evaluate(other, study.dataset, study.trial(index), study.device, shown).as_dict()
            for name, other in getattr(predictor, "variants", {}).items()
        }
        finished = time.perf_counter()
        meta = artefact.meta
        provenance = dict(poisons.provenance)
        return {
            "schema": SCHEMA,
            **wanted,
            "status": "done",
            "error": None,
            "success": outcome.success,
            "clean_accuracy": outcome.clean_accuracy,
            "outcome": outcome.as_dict(),
            "variants": others,
            "filter": asdict(filter_quality(clean.ids, used, poisons.ids)),
            **self._chance(attack, index),
            "poisons": {
                "key": key_of(meta["identity"]),
                "n": len(poisons.ids),
                "eps": study.protocol.threat.eps,
                "max_change": poisons.distance(clean),
                **provenance,
            },
            "surrogates": self._sharing(meta),
            "history": [figures for job in trained for figures in job.history],
            "notes": notes,
            **self.description(attack, defense),
            "seconds": {
                "surrogates": meta["surrogate_seconds"],
                "craft": meta["seconds"],
                **{f"craft.{name}": value for name, value in meta["parts"].items()},
                # With what the defense had trained beside, as if it had been made now, whoever made it.
                "train": trained_at - clock - fits.networks.just_now - fits.external.just_now + fits.networks.all_told,
                **({"train.networks": fits.networks.all_told} if fits.networks else {}),
                # What the defender could have from elsewhere is no part of his training.
                **({"external": fits.external.all_told} if fits.external else {}),
                "evaluate": finished - trained_at,
            },
            "reused": {
                "poisons": artefact.reused,
                "surrogates": artefact.reused or meta["surrogates_reused"],
                **meta["kept_reused"],  # by the crafting, whenever it was
            },
            "memory_peak_mib": peak_memory_mib(torch.device(study.device)),
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def trainings(
        self, attack: Chosen, defense: Chosen, index: int, watch: Callable[[Defense], Defense] = lambda guard: guard
    ) -> list[Trained]:
        """The trainings of a trial's victim, the same as in `victim`, for those who want the networks; nothing is kept.
        watch: puts another defense in place, which looks on."""
        poisons, _ = self.poisons(attack, index)
        data = poisons.applied_to(self.study.victim_data(index)).to(self.study.device)
        what = f"{attack.label} x {defense.label} trial {index}"
        with self._services(what, index, defense, poisons.ids, Used(), {}) as services:
            return self._train_behind(watch(defense.defense()), services, data, index, what)[0]

    def _train_behind(
        self, guard: Any, services: Services, data: Images, index: int, what: str
    ) -> tuple[list[Trained], Tensor]:
        """The trainings that the defense asks for, and the ids of all samples that it hands to them and does not
        come to suspect."""
        study, seed, networks = self.study, self.study.victim_seed(index), self.networks
        trained, used = [], []
        for job, wish in enumerate(guard.jobs(data, services)):
            if len(wish.data) == 0:
                raise TrialFailed(f"defense '{guard.name}' left no training sample")
            trained.append(
                train(
                    networks.start(study.protocol.model, derive(seed, "init", job)),
                    wish.data,
                    study.protocol.train,
                    seed=seed,
                    hooks=guard,
                    job=job,
                    services=services,
                    report=lambda epoch, epochs, _: self.report(what, epoch, epochs),
                )
            )
            used.append(wish.data.ids[~torch.isin(wish.data.ids, trained[-1].suspected)].cpu())
        if not trained:
            raise TrialFailed(f"defense '{guard.name}' asked for no training")
        return trained, torch.cat(used).unique()

    @contextlib.contextmanager
    def _services(
        self, what: str, index: int, defense: Chosen, poison_ids: Tensor, fits: Used, notes: dict[str, Any]
    ) -> Iterator[Services]:
        """What a defense may ask for: of the knowledge beyond the training set only what it declares. fits, notes: get
        what the defense has made and what it notes."""
        study, recipe = self.study, self.study.protocol.train

        def keep(
            name: str, inputs: dict[str, Any], make: Callable[[], dict[str, Tensor]], external: bool = False
        ) -> dict[str, Tensor]:
            identity = {**study.kept_identity(name, inputs), "code": fingerprint.code(make)}

            def timed() -> tuple[dict[str, Tensor], dict[str, Any]]:
                clock = time.perf_counter()
                return make(), {"identity": identity, "seconds": time.perf_counter() - clock}

            artefact = self.store.get_or_make("kept", key_of(identity), timed)
            (fits.external if external else fits.networks).append(artefact)
            return {part: tensor.to(study.device) for part, tensor in artefact.tensors.items()}

        def note(name: str, value: Any) -> None:
            json.dumps(value, allow_nan=False)  # now, rather than when the record is written
            notes[name] = value

        with lent(
            self.networks.fitter(study.victim_seed(index), recipe, f"{what}: ", fits.networks.append),
            lambda part, done, of: self.report(f"{what}: {part}", done, of),
            keep,
            note,
            lambda: study.public_dataset.train.to(study.device),
        ) as (fit, report, keeper, noter, public):
            yield Services(
                recipe,
                len(study.dataset.classes),
                fit,
                report,
                study.protocol.model,
                derive(study.victim_seed(index), "defense", defense.label),
                keeper,
                noter,
                poison_rate=len(study.trial(index).base_ids) / len(study.victim_data(index)),
                clean_holdout=study.holdout(index, poison_ids).to(study.device),
                public=public,
            ).only(defense.needs)

    def failure(self, attack: Chosen, defense: Chosen, index: int, error: str) -> Record:
        """Write the record of a trial that failed; it will be tried again by the next run. Where another run has
        finished it meanwhile, that is its record."""
        wanted = self.study.wanted(attack, defense, index)
        with self.store.lock(wanted["key"]):
            there = self.records.find(wanted)
            if there is None:
                there = self.records.write(self._failure(wanted, attack, defense, index, error))
        return there

    def _failure(
        self, wanted: dict[str, Any], attack: Chosen, defense: Chosen, index: int, error: str
    ) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return {
            "schema": SCHEMA,
            **wanted,
            "status": "failed",
            "error": error,
            "success": None,
            "clean_accuracy": None,
            "outcome": None,
            **self._chance(attack, index),
            "poisons": {},
            "surrogates": {},
            "history": [],
            **self.description(attack, defense),
            "seconds": {},
            "reused": {},
            "memory_peak_mib": peak_memory_mib(torch.device(self.study.device)),
            "started": now,
            "finished": now,
        }

    def _sharing(self, meta: dict[str, Any]) -> dict[str, Any]:
        """Which networks and other work of the attacker this trial shares with others."""
        shared = {"keys": meta["identity"]["surrogates"], "shared_by": "all trials and attacks of this seed"}
        if self.study.protocol.pretrained:
            shared["start"] = self.study.start_identity(self.study.protocol.model, 0)
        return shared | ({"kept": sorted(meta["kept_reused"])} if meta["kept_reused"] else {})

    def _chance(self, attack: Chosen, index: int) -> dict[str, Any]:
        """What was drawn for a trial, and the seeds that the rest is drawn from."""
        study = self.study
        seeds: dict[str, Any] = {"attack": study.attack_seed(attack, index), "victim": study.victim_seed(index)}
        if attack.plugin.make.uses_surrogates:
            seeds["surrogates"] = [study.surrogate_seed(k) for k in range(study.protocol.threat.surrogates)]
        return {"draw": study.trial(index).as_dict(), "seeds": seeds}

    def _external(self, defense: Chosen) -> dict[str, Any]:
        """What a defense uses from outside: packages, files, and which images from elsewhere."""
        found = defense.external()
        if defense.wants_public:
            public = self.study.public_dataset
            found = {**found, "public": {"name": public.name, "fingerprint": public.fingerprint}}
        return found

    def description(self, attack: Chosen, defense: Chosen) -> dict[str, Any]:
        """The part of a record that is the same for all trials of a cell."""
        study = self.study
        dataset = study.dataset
        return {
            "settings": {
                "protocol": study.protocol.as_dict(),
                "attack": attack.settings.as_dict(),
                "defense": defense.values(),
            },
            "knowledge": list(defense.needs),
            "external": self._external(defense),
            "adapted_to": list(dict.fromkeys(name for kind, name in attack.attack().builds_on if kind == "defense")),
            "data": {
                "name": dataset.name,
                "fingerprint": dataset.fingerprint,
                "train": len(dataset.train),
                "test": len(dataset.test),
                "classes": list(dataset.classes),
            },
            "code": {
                "version": bench.__version__,
                "fingerprint": study.cell_identity(attack, defense)["code"],
            },
            "revision": fingerprint.revision(),
            "environment": fingerprint.environment(torch.device(study.device)),
        }


def image_path(out: Path, key: str) -> Path:
    """Where the image grid of the poisons `key` is kept. ValueError for what is no key: records are only files."""
    if not re.fullmatch(r"[0-9a-f]{64}|none", key):
        raise ValueError(f"not a key: {key[:80]!r}")
    return out / "images" / f"{key}.png"


def peak_memory_mib(device: torch.device) -> float:
    """On a GPU the most that was allocated since the victim began; on a CPU the most that this process ever held."""
    if device.type == "cuda" and torch.cuda.is_available():  # elsewhere: a failure told by a machine without one
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10

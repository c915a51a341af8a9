"""The stages of a trial, each idempotent: surrogates, poisons, a victim behind a defense, its record.

Every stage asks the store first. What it needs from an earlier stage it takes from the store, or makes it.
"""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import bench
from attacks.base import Scene
from bench import atomic, fingerprint
from bench.datasets.base import Images
from bench.errors import TrialFailed
from bench.evaluation import evaluate
from bench.grid import poison_grid
from bench.models.base import Classifier, build_model
from bench.poisons import Poisons
from bench.protocol import Chosen
from bench.records import SCHEMA, Records
from bench.registry import find
from bench.seeds import derive
from bench.store import Artefact, Store, key_of
from bench.study import Study
from bench.training import Recipe, Trained, train
from defenses.base import Services

Report = Callable[[str, int, int], None]
"""Called as (what is done, steps done, steps in all)."""


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

    # Surrogates

    def surrogate(self, k: int) -> tuple[Classifier, Artefact]:
        """The attacker's k-th network, trained on clean data with the protocol's surrogate recipe; in eval mode."""
        study, identity = self.study, self.study.surrogate_identity(k)
        artefact = self._trained(
            identity,
            study.dataset.train,
            study.protocol.surrogate_model,
            study.protocol.surrogate,
            f"surrogate {k + 1}/{study.protocol.threat.surrogates}",
        )
        return self._network(study.protocol.surrogate_model, artefact), artefact

    def _trained(self, identity: dict[str, Any], data: Images, model: str, recipe: Recipe, what: str) -> Artefact:
        def make() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
            network = self._build(model, identity["seed"])
            done = train(
                network,
                data.to(self.study.device),
                recipe,
                seed=identity["seed"],
                report=lambda epoch, epochs, _: self.report(what, epoch, epochs),
            )
            return dict(done.model.state_dict()), {
                "identity": identity,
                "history": done.history,
                "seconds": done.seconds,
            }

        return self.store.get_or_make("networks", key_of(identity), make)

    def _build(self, model: str, seed: int) -> Classifier:
        dataset = self.study.dataset
        return build_model(
            model,
            classes=len(dataset.classes),
            size=self.study.size,
            normalisation=dataset.normalisation,
            seed=seed,
            device=self.study.device,
        )

    def _network(self, model: str, artefact: Artefact) -> Classifier:
        network = self._build(model, 0)
        network.load_state_dict(artefact.tensors)
        return network.eval()

    # Poisons

    def poisons(self, attack: Chosen, index: int) -> tuple[Poisons, Artefact]:
        """The poisons of a trial, from the store or crafted; checked against the threat model either way."""
        study = self.study
        identity = study.poisons_identity(attack, index)

        def make() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
            trained: list[Artefact] = []
            started = time.perf_counter()
            poisons = attack.plugin.make(attack.settings).craft(self._scene(attack, index, trained))
            seconds = time.perf_counter() - started
            # What the surrogates took is theirs, whether they were trained just now or long ago.
            just_now = sum(artefact.meta["seconds"] for artefact in trained if not artefact.reused)
            meta = {
                "identity": identity,
                "provenance": poisons.provenance,
                "seconds": max(seconds - just_now, 0.0),
                "surrogate_seconds": sum(artefact.meta["seconds"] for artefact in trained),
                "surrogates_reused": bool(trained) and all(artefact.reused for artefact in trained),
            }
            return {"images": poisons.images, "ids": poisons.ids, "labels": poisons.labels}, meta

        key = key_of(identity)
        artefact = self.store.get_or_make("poisons", key, make)
        poisons = Poisons(**artefact.tensors, provenance=artefact.meta["provenance"])
        poisons.check(study.dataset.train, study.protocol.threat.eps, study.trial(index).base_ids)
        picture = picture_path(self.store.root.parent, key)
        if len(poisons.ids) and not picture.exists():
            clean = study.dataset.train
            atomic.write_bytes(picture, poison_grid(clean.images[clean.rows_of(poisons.ids)], poisons.images))
        return poisons, artefact

    def _scene(self, attack: Chosen, index: int, trained: list[Artefact]) -> Scene:
        study, trial = self.study, self.study.trial(index)
        dataset = study.dataset
        networks: list[Classifier] = []

        def surrogates() -> list[Classifier]:
            if not networks:
                for k in range(study.protocol.threat.surrogates):
                    network, artefact = self.surrogate(k)
                    networks.append(network)
                    trained.append(artefact)
            return networks

        data = dataset.train.to(study.device)
        what = f"{attack.label} trial {index}"
        return Scene(
            train=data,
            bases=data.subset(data.rows_of(trial.base_ids.to(study.device))),
            targets=dataset.test.images[dataset.test.rows_of(trial.target_ids)].to(study.device),
            trial=trial,
            threat=study.protocol.threat,
            augmentation=study.protocol.train.augmentation(dataset.normalisation[0]),
            surrogates=surrogates,
            seed=study.attack_seed(attack, index),
            report=lambda step, steps, _: self.report(what, step, steps),
        )

    # Victims

    def victim(self, attack: Chosen, defense: Chosen, index: int) -> dict[str, Any]:
        """Train the victim of a trial behind a defense, judge it, and put its record in place."""
        study, wanted = self.study, self.study.wanted(attack, defense, index)
        there = self.records.find(wanted)
        if there is not None:  # another run on the same output folder was faster
            return there
        started = datetime.now(UTC)
        if torch.device(study.device).type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        poisons, artefact = self.poisons(attack, index)
        clock = time.perf_counter()
        data = poisons.applied_to(study.dataset.train).to(study.device)
        guard = defense.plugin.make(defense.settings, defense.label)
        services = self._services(f"{attack.label} x {defense.label} trial {index}", wanted, data, index)
        trained = self._train_behind(guard, services, data, attack, defense, index)
        predictor = guard.finish(trained, services)
        trained_at = time.perf_counter()
        outcome = evaluate(predictor, study.dataset, study.trial(index), study.device)
        finished = time.perf_counter()
        meta = artefact.meta
        provenance = dict(poisons.provenance)
        record = {
            "schema": SCHEMA,
            **wanted,
            "status": "done",
            "error": None,
            "success": outcome.success,
            "clean_accuracy": outcome.clean_accuracy,
            "outcome": outcome.as_dict(),
            **self._chance(attack, index),
            "poisons": {
                "key": key_of(meta["identity"]),
                "n": len(poisons.ids),
                "eps": study.protocol.threat.eps,
                "max_change": poisons.distance(study.dataset.train),
                **provenance,
            },
            "surrogates": {"keys": meta["identity"]["surrogates"], "shared_by": "all trials and attacks of this seed"},
            "history": [figures for job in trained for figures in job.history],
            **self.description(attack, defense),
            "seconds": {
                "surrogates": meta["surrogate_seconds"],
                "craft": meta["seconds"],
                "train": trained_at - clock,
                "evaluate": finished - trained_at,
            },
            "reused": {"poisons": artefact.reused, "surrogates": artefact.reused or meta["surrogates_reused"]},
            "memory_peak_mib": peak_memory_mib(torch.device(study.device)),
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.records.write(record)
        return record

    def _train_behind(
        self, guard: Any, services: Services, data: Images, attack: Chosen, defense: Chosen, index: int
    ) -> list[Trained]:
        study, seed = self.study, self.study.victim_seed(index)
        what = f"{attack.label} x {defense.label} trial {index}"
        trained = []
        for job, wish in enumerate(guard.jobs(data, services)):
            if len(wish.data) == 0:
                raise TrialFailed(f"defense '{defense.label}' left no training sample")
            trained.append(
                train(
                    self._build(study.protocol.model, derive(seed, "init", job)),
                    wish.data,
                    study.protocol.train,
                    seed=seed,
                    hooks=guard,
                    job=job,
                    services=services,
                    report=lambda epoch, epochs, _: self.report(what, epoch, epochs),
                )
            )
        if not trained:
            raise TrialFailed(f"defense '{defense.label}' asked for no training")
        return trained

    def _services(self, what: str, wanted: dict[str, Any], data: Images, index: int) -> Services:
        study = self.study

        def fit(part: Images, model: str, epochs: int, *who: str | int) -> Classifier:
            """Train `model` on `part` for the first `epochs` of the victim's recipe; kept in the store."""
            recipe = study.protocol.train.model_copy(update={"epochs": epochs})
            identity = {
                **study.surrogate_identity(0),
                "kind": "fit",
                "data": part.digest,
                "model": model,
                "recipe": recipe.as_dict(),
                "seed": derive(study.victim_seed(index), "fit", model, *who),
                "code": fingerprint.code(find("model", model).make),
            }
            artefact = self._trained(identity, part, model, recipe, f"{what}: {model}")
            return self._network(model, artefact)

        return Services(
            recipe=study.protocol.train,
            classes=len(study.dataset.classes),
            fit=fit,
            report=lambda part, done, of: self.report(f"{what}: {part}", done, of),
        )

    def failure(self, attack: Chosen, defense: Chosen, index: int, error: str) -> dict[str, Any]:
        """Write the record of a trial that failed; it will be tried again by the next run."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = {
            "schema": SCHEMA,
            **self.study.wanted(attack, defense, index),
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
        self.records.write(record)
        return record

    def _chance(self, attack: Chosen, index: int) -> dict[str, Any]:
        """What was drawn for a trial, and the seeds that the rest is drawn from."""
        study = self.study
        seeds: dict[str, Any] = {"attack": study.attack_seed(attack, index), "victim": study.victim_seed(index)}
        if attack.plugin.make.uses_surrogates:
            seeds["surrogates"] = [study.surrogate_seed(k) for k in range(study.protocol.threat.surrogates)]
        return {"draw": study.trial(index).as_dict(), "seeds": seeds}

    def description(self, attack: Chosen, defense: Chosen) -> dict[str, Any]:
        """The part of a record that is the same for all trials of a cell."""
        study = self.study
        dataset = study.dataset
        return {
            "settings": {
                "protocol": study.protocol.as_dict(),
                "attack": attack.settings.as_dict(),
                "defense": defense.settings.as_dict(),
            },
            "knowledge": list(defense.plugin.make.needs),
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


def picture_path(out: Path, key: str) -> Path:
    """Where the picture grid of the poisons `key` is kept. ValueError for what is no key: records are only files."""
    if not re.fullmatch(r"[0-9a-f]{64}|none", key):
        raise ValueError(f"not a key: {key[:80]!r}")
    return out / "pictures" / f"{key}.png"


def peak_memory_mib(device: torch.device) -> float:
    """On a GPU the most that was allocated since the victim began; on a CPU the most that this process ever held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10

"""The record of a trial, as it is written; nothing is computed here."""

from __future__ import annotations

import functools
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch

import bench
from bench.execution.poison_image import save
from bench.foundation import fingerprint
from bench.science.identity import identities
from bench.science.selection import SelectedAttack, SelectedDefense
from bench.science.study import Case, Study
from bench.science.victim import Verdict, judge
from bench.science.workspace import Workspace
from bench.storage.making import making
from bench.storage.record import SCHEMA, Record
from bench.storage.records import Records
from bench.storage.store import key_of

Fields = dict[str, Any]


def record_of(
    space: Workspace, records: Records, case: Case, attack: SelectedAttack, defense: SelectedDefense
) -> Record:
    """The record of a trial: from the disk, or made by training its victim behind the defense and judging it."""
    make = functools.partial(_judged, space, case, attack, defense)
    return _once(space, records, identities(case.study).record(attack, defense, case.index, case.victim), make)


def _judged(space: Workspace, case: Case, attack: SelectedAttack, defense: SelectedDefense, expected: Fields) -> Fields:
    if torch.device(case.study.device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = _now()
    verdict = judge(space, case, attack, defense)
    save(space.store.root.parent, verdict.crafted, verdict.poisons, verdict.clean, space.store.say)
    return finished(case, attack, defense, expected, verdict, started)


def failure(
    space: Workspace, records: Records, case: Case, attack: SelectedAttack, defense: SelectedDefense, error: str
) -> Record:
    """Write the record of a trial that failed; it will be tried again by the next run. Where another run has
    finished it meanwhile, that is its record."""
    make = functools.partial(failed, case, attack, defense, error)
    return _once(space, records, identities(case.study).record(attack, defense, case.index, case.victim), make)


def _once(space: Workspace, records: Records, expected: Fields, make: Callable[[Fields], Fields]) -> Record:
    with space.store.lock(expected["key"]):
        record = records.find(expected)  # by another run on the same output folder
        if record is None:
            with making(space.store, expected["key"]):
                record = records.write(make(expected))
    return record


def finished(
    case: Case, attack: SelectedAttack, defense: SelectedDefense, expected: Mapping[str, Any], verdict: Verdict,
    started: str,
) -> Fields:  # fmt: skip
    study, meta, poisons, outcome = case.study, verdict.crafted.meta, verdict.poisons, verdict.outcome
    return {
        "schema": SCHEMA,
        **expected,
        "status": "done",
        "error": None,
        "success": outcome.success,
        "clean_accuracy": outcome.clean_accuracy,
        "outcome": outcome.as_dict(),
        "variants": {name: variant.as_dict() for name, variant in verdict.variants.items()},
        "filter": asdict(verdict.filtered),
        **_chance(case, attack),
        "poisons": {
            "key": key_of(meta["identity"]),
            "n": len(poisons.ids),
            "eps": study.protocol.threat.eps,
            "max_change": poisons.distance(verdict.clean),
            **poisons.provenance,
        },
        "surrogates": _sharing(study, meta),
        "history": [figures for training in verdict.trained for figures in training.history],
        "notes": verdict.notes,
        **description(study, attack, defense),
        "seconds": {
            "surrogates": meta["surrogate_seconds"],
            "craft": meta["seconds"],
            **{f"craft.{name}": value for name, value in meta["parts"].items()},
            **verdict.seconds,
        },
        "reused": {
            "poisons": verdict.crafted.reused,
            "surrogates": verdict.crafted.reused or meta["surrogates_reused"],
            **meta["kept_reused"],  # by the crafting, whenever it was
        },
        "memory_peak_mib": peak_memory_mib(torch.device(study.device)),
        **_places(study, defense),
        "started": started,
        "finished": _now(),
    }


def failed(
    case: Case, attack: SelectedAttack, defense: SelectedDefense, error: str, expected: Mapping[str, Any]
) -> Fields:
    moment = _now()
    return {
        "schema": SCHEMA,
        **expected,
        "status": "failed",
        "error": error,
        "success": None,
        "clean_accuracy": None,
        "outcome": None,
        **_chance(case, attack),
        "poisons": {},
        "surrogates": {},
        "history": [],
        **description(case.study, attack, defense),
        "seconds": {},
        "reused": {},
        "memory_peak_mib": peak_memory_mib(torch.device(case.study.device)),
        **_places(case.study, defense),
        "started": moment,
        "finished": moment,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _sharing(study: Study, meta: dict[str, Any]) -> dict[str, Any]:
    """Which networks and other work of the attacker this trial shares with others."""
    shared = {"keys": meta["identity"]["surrogates"], "shared_by": "all trials and attacks of this seed"}
    if study.protocol.pretrained:
        shared["start"] = identities(study).start(study.protocol.model, 0)
    return shared | ({"kept": sorted(meta["kept_reused"])} if meta["kept_reused"] else {})


def _chance(case: Case, attack: SelectedAttack) -> dict[str, Any]:
    """What was drawn for a trial, and the seeds that the rest is drawn from."""
    seeds: dict[str, Any] = {"attack": case.attack_seed(attack), "victim": case.victim_seed}
    if attack.make.uses_surrogates:
        count = case.study.protocol.threat.surrogates
        seeds["surrogates"] = [case.study.surrogate_seed(k) for k in range(count)]
    # What has failed may have done so before its trial was drawn.
    return {**({"draw": case.trial.as_dict()} if case.drawn else {}), "seeds": seeds}


def _external(study: Study, defense: SelectedDefense) -> dict[str, Any]:
    """What a defense uses from outside: packages, files, and which images from elsewhere."""
    if not defense.asked.wants_public:
        return defense.external
    public = {"name": study.public_dataset.name, "fingerprint": study.public_dataset.fingerprint}
    return {**defense.external, "public": public}


def description(study: Study, attack: SelectedAttack, defense: SelectedDefense) -> dict[str, Any]:
    """The part of a record that is the same for all trials of a cell."""
    dataset = study.dataset
    return {
        "settings": {
            "protocol": study.settings(),
            "attack": attack.values(),
            "defense": defense.values(),
        },
        "knowledge": list(defense.needs),
        "external": _external(study, defense),
        "adapted_to": list(dict.fromkeys(name for kind, name in attack.asked.builds_on if kind == "defense")),
        "data": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "train": len(dataset.train),
            "test": len(dataset.test),
            "classes": list(dataset.classes),
        },
        "code": {
            "version": bench.__version__,
            "fingerprint": identities(study).cell(attack, defense)["code"],
        },
        "revision": fingerprint.revision(),
        "environment": fingerprint.environment(torch.device(study.device), study.threads),
    }


def _places(study: Study, defense: SelectedDefense) -> Fields:
    """Where data and files were found that are not found by their name alone."""
    argument = study.protocol.dataset.argument
    places = {**({"dataset": argument} if argument else {}), **defense.places()}
    return {"places": places} if places else {}


def peak_memory_mib(device: torch.device) -> float:
    """On a GPU the most that was allocated since the victim began; on a CPU the most that this process ever held."""
    if device.type == "cuda" and torch.cuda.is_available():  # elsewhere: a failure told by a machine without one
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10

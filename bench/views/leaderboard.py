"""The leaderboard: cells from trial records. Pure; `leaderboard_text` and `leaderboard_html` show it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.foundation.statistics import mean_interval, paired_difference, paired_test
from bench.views.cells import Cell, protocol_of, rank_of, scene_of, summarise
from bench.views.differences import differences
from bench.views.published import Published, published

Record = Mapping[str, Any]

UNDEFENDED = "none"
ENOUGH_TRIALS = 20  # the usual number; fewer leave an interval of more than +-22 points
LARGE_DROP = 0.05  # clean accuracy that a defense without any success should not have cost: perhaps nothing was learnt
LARGE_SHARE = 0.10  # of the training set: a filter that drops more has dropped far more than any budget of poisons

RULE = (
    "rank: among the defenses against one attack, lower success first, then higher clean accuracy; "
    "cells whose intervals overlap are not told apart by it"
)
SUCCESS = "success: argmax equals the target class at the final epoch; k/n over finished trials [95 % Clopper-Pearson]"
PAIRED = "drop, cost and test: on the trials that both cells finished, paired; p is not corrected for many comparisons"
NOTES = (RULE, SUCCESS, PAIRED)


@dataclass(frozen=True)
class Drop:
    """Clean accuracy lost against the undefended cell, mean over n common trials; interval: 95 % (Student)."""

    mean: float
    interval: tuple[float, float] | None
    n: int


@dataclass(frozen=True)
class Comparison:
    """Success less that of the baseline on n common trials, with a 95 % interval, and the p of a paired test; p is None
    where there is no spread to judge by."""

    baseline: str
    n: int
    difference: float
    low: float
    high: float
    test: str
    p: float | None


@dataclass(frozen=True)
class Entry:
    """One cell on the leaderboard.

    attack_label, defense_label: names with the settings in which cells of one name differ; rank: among the cells of
    `scene`, from 1, None without a finished trial; train_cost: mean seconds of training over those of the undefended
    victim on common trials; kind: of the attack, "adaptive" when it was crafted knowing the defenses in `adapted_to`,
    "control" when it poisons nothing, else "static".
    """

    cell: str
    scene: str
    seed: int
    figures: Cell
    attack_label: str
    defense_label: str
    knowledge: tuple[str, ...]
    kind: str
    adapted_to: tuple[str, ...]
    published: Published | None
    rank: int | None = None
    drop: Drop | None = None
    train_cost: float | None = None
    comparison: Comparison | None = None
    flags: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """JSON types only; what is not known is None."""
        figures, drop = self.figures, self.drop
        around, lost = figures.clean_accuracy_interval or (None, None), (drop and drop.interval) or (None, None)
        return {
            "rank": self.rank,
            "attack": figures.attack,
            "defense": figures.defense,
            "protocol": figures.protocol,
            "seed": self.seed,
            "attack_label": self.attack_label,
            "defense_label": self.defense_label,
            "n": figures.n,
            "failed": figures.failed,
            "successes": figures.successes,
            "success_rate": figures.success_rate if figures.n else None,
            "success_low": figures.success_low,
            "success_high": figures.success_high,
            "clean_accuracy": figures.clean_accuracy if figures.n else None,
            "clean_accuracy_low": around[0],
            "clean_accuracy_high": around[1],
            "accuracy_drop": drop.mean if drop else None,
            "accuracy_drop_low": lost[0],
            "accuracy_drop_high": lost[1],
            "accuracy_drop_n": drop.n if drop else 0,
            "train_seconds": figures.seconds.get("train"),
            "train_cost": self.train_cost,
            "knowledge": list(self.knowledge),
            "attack_kind": self.kind,
            "adapted_to": list(self.adapted_to),
            "published": self.published.as_dict() if self.published else None,
            "comparison": vars(self.comparison) if self.comparison else None,
            "flags": list(self.flags),
            "cell": self.cell,
        }


def leaderboard(records: Iterable[Record], baseline: str = UNDEFENDED) -> list[Entry]:
    """All cells: by protocol and attack as they first come, within an attack by rank.

    records: finished or failed, full or as `record_reading` gives them; of two with one key the better counts (done
    before failed, then the newer). baseline: name of the defense that the others are tested against.
    """
    once: dict[str, Record] = {}
    for record in records:
        other = once.setdefault(record["key"], record)
        if other is not record and rank_of(other) < rank_of(record):
            once[record["key"]] = record
    cells: dict[tuple[str, ...], list[Record]] = {}
    for record in once.values():
        cells.setdefault((record["protocol"], record["attack"], record["defense"], record["cell"]), []).append(record)
    groups = [sorted(own, key=lambda record: record["trial"]) for own in cells.values()]
    labels = _labels(groups)
    scenes: dict[tuple[str, str], list[tuple[Entry, list[Record]]]] = {}
    for own, (attack_label, defense_label) in zip(groups, labels, strict=True):
        entry = _entry(own, attack_label, defense_label)
        scenes.setdefault((entry.figures.protocol, entry.scene), []).append((entry, own))
    order = {protocol: None for protocol, _ in scenes}
    ranked = {place: _ranked(scene, baseline) for place, scene in scenes.items()}
    return [entry for protocol in order for place, scene in ranked.items() if place[0] == protocol for entry in scene]


def _entry(own: list[Record], attack_label: str, defense_label: str) -> Entry:
    first = own[0]
    adapted = {name: None for record in own for name in record.get("adapted_to") or []}
    adapted |= {(record.get("poisons") or {}).get("adapted_to"): None for record in own}  # older records
    counts = {(record.get("poisons") or {}).get("n") for record in own if record["status"] == "done"}
    return Entry(
        cell=first["cell"],
        scene=scene_of(first),
        seed=first["seed"],
        figures=summarise(own),
        attack_label=attack_label,
        defense_label=defense_label,
        knowledge=tuple(first.get("knowledge") or ()),
        kind="adaptive" if any(adapted) else "control" if counts == {0} else "static",
        adapted_to=tuple(name for name in adapted if name),
        published=published(first),
    )


# Labels


def _labels(groups: Sequence[list[Record]]) -> list[tuple[str, str]]:
    """(attack, defense) of each cell, told apart by what differs: the scene's settings are the attack's label, the
    defense's are its own; cells that agree in both differ in code or platform."""
    firsts = [own[0] for own in groups]
    scenes = _told_apart(firsts, ("protocol", "attack"), _scene_settings)
    defenses = _told_apart(firsts, ("protocol", "defense"), lambda record: record["settings"].get("defense") or {})
    labels = list(zip(scenes, defenses, strict=True))
    for make in (_origin, lambda record: f"cell {record['cell'][:8]}"):
        same: dict[tuple[str, ...], list[int]] = {}
        for i, label in enumerate(labels):
            same.setdefault((firsts[i]["protocol"], *label), []).append(i)
        for i in (i for several in same.values() if len(several) > 1 for i in several):
            labels[i] = (labels[i][0], f"{labels[i][1]} [{make(firsts[i])}]")
    return labels


def _told_apart(records: Sequence[Record], names: tuple[str, str], settings: Any) -> list[str]:
    """The last of `names` of each record, with what differs among the records that agree in all `names`."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for i, record in enumerate(records):
        alike.setdefault(tuple(record[name] for name in names), []).append(i)
    labels = [record[names[-1]] for record in records]
    for several in alike.values():
        if len(several) > 1:
            for i, text in zip(several, differences([settings(records[i]) for i in several]), strict=True):
                labels[i] += f" [{text}]" if text else ""
    return labels


def _scene_settings(record: Record) -> dict[str, Any]:
    """What `scene_of` hashes besides the names."""
    settings, data = record["settings"], record.get("data") or {}
    return {
        **protocol_of(record),
        "attack": settings.get("attack") or {},
        "seed": record["seed"],
        "data": str(data.get("fingerprint", ""))[:8],
    }


def _origin(record: Record) -> str:
    code, surroundings = record.get("code") or {}, record.get("environment") or {}
    parts = {"code": code.get("fingerprint", "")[:8], "torch": surroundings.get("torch")}
    parts |= {"on": surroundings.get("device")}
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value)


# Within a scene: ranks, and what is measured against another cell


def _ranked(scene: list[tuple[Entry, list[Record]]], baseline: str) -> list[Entry]:
    def score(entry: Entry) -> tuple[float, float]:
        return entry.figures.success_rate, -entry.figures.clean_accuracy

    entries = [_against(entry, own, scene, baseline) for entry, own in scene]
    counted = sorted((entry for entry in entries if entry.figures.n), key=score)
    places = {id(entry): 1 + sum(score(other) < score(entry) for other in counted) for entry in counted}
    ranked = [replace(entry, rank=places[id(entry)]) for entry in counted]
    return ranked + [entry for entry in entries if not entry.figures.n]


def _against(entry: Entry, own: list[Record], scene: Sequence[tuple[Entry, list[Record]]], baseline: str) -> Entry:
    bare, _ = _nearest(entry, own, scene, UNDEFENDED)
    base, base_label = _nearest(entry, own, scene, baseline)
    pairs = _common(own, bare)
    drop = cost = None
    if pairs:
        lost = [theirs["clean_accuracy"] - ours["clean_accuracy"] for ours, theirs in pairs]
        drop = Drop(statistics.fmean(lost), mean_interval(lost), len(lost))
        ours_s, theirs_s = (sum(pair[i]["seconds"].get("train", 0.0) for pair in pairs) for i in (0, 1))
        cost = ours_s / theirs_s if theirs_s > 0 else None
    comparison = _compare(_common(own, base), base_label)
    flags = _flags(entry, own, drop) + _mixture(own, bare, base)
    return replace(entry, drop=drop, train_cost=cost, comparison=comparison, flags=tuple(flags))


def _nearest(
    entry: Entry, own: list[Record], scene: Sequence[tuple[Entry, list[Record]]], defense: str
) -> tuple[list[Record], str]:
    """The records of the cell of `defense` to compare with, none where there is no other; of several the one with most
    common trials, then of the same revisions, then the newest."""

    def fit(cell: tuple[Entry, list[Record]]) -> tuple[int, bool, tuple[bool, int]]:
        return len(_common(own, cell[1])), _revisions(own) == _revisions(cell[1]), max(map(rank_of, cell[1]))

    if entry.figures.defense == defense:
        return [], ""
    found = max((cell for cell in scene if cell[0].figures.defense == defense), key=fit, default=None)
    return (found[1], found[0].defense_label) if found else ([], "")


def _common(ours: Sequence[Record], theirs: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Trials that both finished, with the same target and target class where records tell them."""
    known = {record["trial"]: record for record in theirs if record["status"] == "done"}
    pairs = [(r, known[r["trial"]]) for r in ours if r["status"] == "done" and r["trial"] in known]
    return [(a, b) for a, b in pairs if _aim(a) == _aim(b)]


def _aim(record: Record) -> tuple[Any, ...]:
    draw = record.get("draw") or {}
    return draw.get("target_ids"), draw.get("target_class")


def _compare(pairs: Sequence[tuple[Record, Record]], baseline: str) -> Comparison | None:
    if not pairs:
        return None
    ours, theirs = ([pair[i]["success"] for pair in pairs] for i in (0, 1))
    test, p = paired_test(ours, theirs)
    return Comparison(baseline, len(pairs), *paired_difference(ours, theirs), test, p)


# What should make a reader suspicious


def _flags(entry: Entry, own: Sequence[Record], drop: Drop | None) -> list[str]:
    figures, flags = entry.figures, []
    if figures.failed:
        flags.append(f"{figures.failed} failed")
    if figures.n < ENOUGH_TRIALS:
        flags.append(f"n < {ENOUGH_TRIALS}")
    if figures.n and figures.successes == 0 and drop is not None and drop.mean > LARGE_DROP:
        flags.append(f"no success, but {100 * drop.mean:.1f} points of clean accuracy lost")
    shares = [_dropped(record) for record in own if record["status"] == "done"]
    if shares and statistics.fmean(shares) > LARGE_SHARE:
        flags.append(f"filtered {100 * statistics.fmean(shares):.0f} % of the training set")
    outside = sum(_outside(record.get("poisons") or {}) for record in own)
    if outside:
        flags.append(f"poisons beyond eps in {outside} trial{'s' * (outside > 1)}")
    return flags


def _dropped(record: Record) -> float:
    """Share of the training set that the defense left out of every training."""
    found, size = record.get("filter") or {}, (record.get("data") or {}).get("train")
    return found.get("dropped", 0) / size if size else 0.0


def _outside(poisons: Mapping[str, Any]) -> bool:
    change, eps = poisons.get("max_change"), poisons.get("eps")
    return change is not None and eps is not None and change > eps


def _mixture(own: Sequence[Record], *others: Sequence[Record]) -> list[str]:
    """Flags for trials, of the cell and of those that it is compared with, made by other code or on other devices, and
    for common trials with other poisons."""
    every = [record for records in (own, *others) for record in records]
    flags = []
    revisions = sorted(_revisions(every))
    if len(revisions) > 1:
        flags.append(f"{len(revisions)} code revisions ({', '.join(_cut(one) for one in revisions[:4])})")
    devices = sorted({_device(record) for record in every if record.get("environment")})
    if len(devices) > 1:
        flags.append(f"{len(devices)} devices ({', '.join(devices[:4])})")
    unequal = {a["trial"] for other in others for a, b in _common(own, other) if _poisons(a) != _poisons(b)}
    if unequal:
        flags.append(f"other poisons than the cell it is compared with in {len(unequal)} trials")
    return flags


def _revisions(records: Iterable[Record]) -> set[str]:
    return {record["revision"] for record in records if record.get("revision")}


def _cut(revision: str) -> str:
    return revision[:8] + "+" * revision.endswith("+")


def _device(record: Record) -> str:
    surroundings = record.get("environment") or {}
    return " ".join(str(surroundings.get(name, "?")) for name in ("device", "device_name"))


def _poisons(record: Record) -> str | None:
    return (record.get("poisons") or {}).get("key")

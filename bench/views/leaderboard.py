"""The leaderboard: cells from trial records, with all that is measured against another cell. Computed here only; the
table after a run, text, HTML, data frames and MLflow show it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.storage.record import Record
from bench.views.cells import (
    Cell,
    background_of,
    by_cell,
    common_trials,
    name_of,
    pooled,
    precedence,
    setting_of,
    summarise,
)
from bench.views.comparisons import Comparison, Drop, compare, drop_and_cost
from bench.views.differences import labels
from bench.views.flags import flags_of, flags_of_mixture, flags_of_precision, flags_of_seeds, revisions_of
from bench.views.published import Published, published

UNDEFENDED = "none"

RULE = (
    "rank: among the defenses against one attack, lower success first, then higher clean accuracy; "
    "overlapping intervals: the order is not significant"
)
SUCCESS = "success: argmax equals the target class at the final epoch; k/n over finished trials [95 % Clopper-Pearson]"
SEVERAL = (
    "several victims a trial: k is the sum of the trials' rates [95 % Gaffke's bound of a mean, no wider than "
    "Clopper-Pearson on trials]; differences [the same bound], tested by exact sign flips over trials"
)
PAIRED = (
    "drop, cost and test: on the trials that both cells finished, paired; p-values are not corrected for multiple "
    "comparisons"
)


MARGIN = (
    "margin: how far the target's score (logit) for the attacker's class is above its best other score; above 0 the "
    "attack has succeeded. The column is its change on the same poisons against the victim that success is compared "
    "with: negative: the defense moved the target away from the attacker's class; positive: towards it. Typical change "
    "[95 % Hodges-Lehmann, from 6 trials on], p of Wilcoxon's signed ranks. Whatever makes a network less sure of all "
    "images brings its margins nearer to 0; a rejected image keeps its margin"
)
ONE_SEED = (
    "one seed: where an attack crafts on networks of its own, all trials of a cell share them. With others it may do "
    "better or worse in all trials at once, and no interval here tells by how much: `run --seed 1` has others, "
    "`leaderboard --pool` takes the trials of all seeds together"
)
SEVERAL_SEEDS = (
    "several seeds: trials of one seed share the networks that the attack crafts on. So every interval also covers "
    "what Student's t over seeds says, and no p is below that of its test; more seeds narrow it more than more trials"
)


def rules(entries: Iterable[Entry]) -> tuple[str, ...]:
    """What a reader of the figures must know."""
    shown = list(entries)
    compared = [paired for entry in shown for paired in (entry.comparison, entry.over_control) if paired]
    attacks = [len(entry.figures.seeds) for entry in shown if entry.kind != "control" and entry.figures.n]
    notes = {
        RULE: True,
        SUCCESS: True,
        PAIRED: True,
        MARGIN: any(paired.margin for paired in compared),
        SEVERAL: any(entry.figures.victims > entry.figures.n for entry in shown),
        ONE_SEED: 1 in attacks,
        SEVERAL_SEEDS: any(len(entry.figures.seeds) > 1 for entry in shown),
    }
    return tuple(note for note, holds in notes.items() if holds)


@dataclass(frozen=True)
class Entry:
    """One cell on the leaderboard.

    attack_label, defense_label: names with the settings in which cells of one name differ; rank: among the cells of
    one `setting`, from 1, None without a finished trial; train_cost: mean seconds of training over those of the
    undefended victim on common trials; comparison: with the baseline defense; over_control: of an undefended attack,
    with the clean control; kind: of the attack, "adaptive" when it was crafted knowing the defenses in `adapted_to`,
    "control" when it poisons nothing, else "static".
    """

    cell: str
    setting: str
    figures: Cell
    attack_label: str
    defense_label: str
    knowledge: tuple[str, ...]
    kind: str
    adapted_to: tuple[str, ...]
    published: Published | None
    rank: int | None
    drop: Drop | None
    train_cost: float | None
    comparison: Comparison | None
    over_control: Comparison | None
    flags: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON types only; what is not known is None."""
        figures, drop = self.figures, self.drop
        around, lost = figures.clean_accuracy_interval or (None, None), (drop and drop.interval) or (None, None)
        return {
            "rank": self.rank,
            "attack": figures.attack,
            "defense": figures.defense,
            "protocol": figures.protocol,
            "seed": figures.seeds[0] if len(figures.seeds) == 1 else None,
            "seeds": list(figures.seeds),
            "attack_label": self.attack_label,
            "defense_label": self.defense_label,
            "n": figures.n,
            "victims": figures.victims,
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
            "comparison": self.comparison.as_dict() if self.comparison else None,
            "over_control": self.over_control.as_dict() if self.over_control else None,
            "flags": list(self.flags),
            "cell": self.cell,
        }


@dataclass(frozen=True)
class _Trials:
    """The records of a cell, and what its entry is compared by."""

    records: list[Record]
    setting: str
    background: list[Any]
    attack_label: str
    defense_label: str

    @property
    def first(self) -> Record:
        return self.records[0]

    @property
    def undefended(self) -> bool:
        return self.first["defense"] == UNDEFENDED

    @property
    def poisons_nothing(self) -> bool:
        return {record["poisons"].get("n") for record in self.records if record["status"] == "done"} == {0}

    @property
    def shows_trigger(self) -> bool:
        return any((record["outcome"] or {}).get("backdoor") for record in self.records)


def leaderboard(records: Iterable[Record], baseline: str = UNDEFENDED, pool: bool = False) -> list[Entry]:
    """All cells: by protocol and attack as they first come, within an attack by rank.

    records: finished or failed, as `bench.storage.records` reads them; of several with one key that of most
    `precedence` counts. baseline: name of the defense that the others are tested against. pool: cells that differ in
    nothing but the seed are one.
    """
    groups = pooled(by_cell(records)) if pool else by_cell(records)
    cells = [
        _Trials(group, setting_of(group[0], pool), background_of(group[0], pool), *names)
        for group, names in zip(groups, labels([group[0] for group in groups], pool), strict=True)
    ]
    controls = [cell for cell in cells if cell.undefended and cell.poisons_nothing]
    settings: dict[str, dict[str, list[_Trials]]] = {}
    for cell in cells:
        settings.setdefault(cell.first["protocol"], {}).setdefault(cell.setting, []).append(cell)
    return [
        replace(entry, flags=(*entry.flags, *mixed))
        for of_protocol in settings.values()
        for mixed in [flags_of_precision(cell.first for rivals in of_protocol.values() for cell in rivals)]
        for rivals in of_protocol.values()
        for entry in _of_setting(rivals, controls, baseline)
    ]


def _of_setting(cells: Sequence[_Trials], controls: Sequence[_Trials], baseline: str) -> list[Entry]:
    undefended, bases = ([c for c in cells if c.first["defense"] == name] for name in (UNDEFENDED, baseline))
    entries = [_entry(cell, undefended, bases, controls) for cell in cells]
    every = sorted({seed for entry in entries for seed in entry.figures.seeds})
    return _ranked([replace(e, flags=(*e.flags, *flags_of_seeds(e.figures.seeds, every))) for e in entries])


def _ranked(entries: list[Entry]) -> list[Entry]:
    def score(entry: Entry) -> tuple[float, float]:
        return entry.figures.success_rate, -entry.figures.clean_accuracy

    counted = sorted((entry for entry in entries if entry.figures.n), key=score)
    scores = list(map(score, counted))
    ranked = [replace(entry, rank=1 + bisect_left(scores, score(entry))) for entry in counted]
    return ranked + [entry for entry in entries if not entry.figures.n]


def _entry(
    cell: _Trials, undefended: Sequence[_Trials], bases: Sequence[_Trials], controls: Sequence[_Trials]
) -> Entry:
    first, figures = cell.first, summarise(cell.records)
    bare, base = (
        None if any(candidate is cell for candidate in candidates) else _nearest(cell, candidates)
        for candidates in (undefended, bases)
    )
    control = None
    if cell.undefended and not cell.poisons_nothing:
        control = _nearest(cell, [c for c in controls if c.background == cell.background])
    drop, cost = drop_and_cost(cell.records, bare.records) if bare else (None, None)
    compared = [bare, base] if bare is not base else [bare]
    mixture = flags_of_mixture(cell.records, *(other.records for other in compared if other))
    adapted_to = tuple(dict.fromkeys(name for record in cell.records for name in record["adapted_to"]))
    return Entry(
        cell=name_of(cell.records),
        setting=cell.setting,
        figures=figures,
        attack_label=cell.attack_label,
        defense_label=cell.defense_label,
        knowledge=tuple(first["knowledge"]),
        kind="adaptive" if adapted_to else "control" if cell.poisons_nothing else "static",
        adapted_to=adapted_to,
        published=published(first),
        rank=None,
        drop=drop,
        train_cost=cost,
        comparison=compare(cell.records, base.records, base.defense_label) if base else None,
        over_control=compare(cell.records, control.records, control.attack_label) if control else None,
        flags=(*flags_of(figures, cell.records, drop.mean if drop else None), *mixture),
    )


def _nearest(cell: _Trials, candidates: Sequence[_Trials]) -> _Trials | None:
    """The cell to compare with, None where there is none; of several one whose trials show a trigger if and only if
    ours do, then the one with most common trials, then of the same revisions, then the newest."""

    def fit(candidate: _Trials) -> tuple[bool, int, bool, tuple[bool, int]]:
        return (
            candidate.shows_trigger == cell.shows_trigger,
            len(common_trials(cell.records, candidate.records)),
            revisions_of(candidate.records) == revisions_of(cell.records),
            max(map(precedence, candidate.records)),
        )

    return max(candidates, key=fit, default=None) if len(candidates) != 1 else candidates[0]

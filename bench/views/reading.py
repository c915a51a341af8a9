"""What a run showed, and what its trials cannot tell: a sentence for each attack, for those who do not read tables.

A change is told as a fact only where its 95 % interval leaves zero out and its test agrees: for few trials the interval
of paired proportions alone is too sure. Names come from files and are not trusted.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.foundation.shown import plain
from bench.views.comparisons import Comparison
from bench.views.flags import ENOUGH_TRIALS
from bench.views.leaderboard import UNDEFENDED, Entry
from bench.views.text import logits, percent, probability

NAMED = 3  # more defenses than these are told in numbers


def reading(entries: Sequence[Entry]) -> list[str]:
    """Of a leaderboard: a sentence for each of its attacks; of clean controls alone, one for each of them."""
    attacks = dict.fromkeys(entry.setting for entry in entries if entry.kind != "control")
    groups = [[entry for entry in entries if entry.setting == setting] for setting in attacks]
    told = [_of_attack(group, entries) for group in groups]
    return [plain(text) for text in told or map(_of_control, entries)]


def _of_control(entry: Entry) -> str:
    behind = "" if entry.figures.defense == UNDEFENDED else f" behind {entry.defense_label}"
    rate = f"{_count(entry)} ({_range(entry)})"
    return f"without poisons{behind} the victim errs as an attacker would wish in {rate}: what an attack must beat."


def _of_attack(group: Sequence[Entry], entries: Sequence[Entry]) -> str:
    finished = [entry for entry in group if entry.figures.n]
    defended = [entry for entry in finished if entry.figures.defense != UNDEFENDED]
    bare = [entry for entry in finished if entry.figures.defense == UNDEFENDED]
    seen = [f"in {_count(entry)} {_place(entry)}" for entry in bare] + _behind(defended)
    names = {entry.over_control.baseline for entry in bare if entry.over_control}
    controls = [e for e in entries if e.attack_label in names and e.figures.defense == UNDEFENDED and e.figures.n]
    without = f" (without poisons in {_and([_count(control) for control in controls])})" if controls else ""
    parts = [f"{group[0].attack_label} succeeded {_and(seen)}{without}"] if seen else []
    parts += _judged(bare, defended)
    lost = [entry for entry in group if not entry.figures.n]
    parts += [f"no trial of {group[0].attack_label} {_place(entry)} finished" for entry in lost[:NAMED]]
    parts += [f"nor did any behind {len(lost) - NAMED} more"] if len(lost) > NAMED else []
    return "; ".join(parts) + "."


def _judged(bare: Sequence[Entry], defended: Sequence[Entry]) -> list[str]:
    """What the trials tell of success, and what they do not."""
    over = [("the poisons", entry.over_control) for entry in bare if entry.over_control]
    behind = [(entry.defense_label, entry.comparison) for entry in defended if entry.comparison]
    named, many = ([*over, *behind], []) if len(behind) <= NAMED else (over, behind)
    told = [_changes(*pair) for pair in named if _direction(pair[1])]
    untold = [pair for pair in named if not _direction(pair[1])]
    parts = [f"{_and(told)} (95 %)"] if told else []
    parts += [_of_many([paired for _, paired in many])] if many else []
    if untold:
        least = min(paired.n for _, paired in untold)
        whether = " or ".join(_may_change(*pair) for pair in untold)
        parts.append(f"{_these(least)} cannot tell whether {whether}{_advice(least)}")
    if not over and not behind and (cells := [*bare, *defended][:NAMED]):
        least = min(entry.figures.n for entry in cells)
        ranges = _and([f"{_range(entry)} {_place(entry)}" for entry in cells])
        parts.append(f"the true rate may be {ranges} (95 %){_advice(least)}")
    if defended and not bare:
        parts.append("without an undefended victim nothing tells what a defense changes")
    elif alone := [entry.defense_label for entry in defended if not entry.comparison]:
        parts.append(f"no trial finished both undefended and behind {_and(alone[:NAMED])}")
    return parts


def _behind(defended: Sequence[Entry]) -> list[str]:
    if len(defended) <= NAMED:
        return [f"in {_count(entry)} {_place(entry)}{_price(entry)}" for entry in defended]
    least, *_, most = sorted(defended, key=lambda entry: entry.figures.success_rate)
    return [f"behind {len(defended)} defenses in {_count(least)} ({least.defense_label}) to {_count(most)} "
            f"({most.defense_label})"]  # fmt: skip


def _place(entry: Entry) -> str:
    name, more, settings = entry.defense_label.partition(" [")
    return f"undefended{more}{settings}" if name == UNDEFENDED else f"behind {entry.defense_label}"


def _count(entry: Entry) -> str:
    """13 of 20 trials (1 failed)"""
    figures = entry.figures
    trials = f"{figures.n} trial{'s' * (figures.n > 1)}"
    failed = f" ({figures.failed} failed)" if figures.failed else ""
    if figures.counted and figures.victims == figures.n:
        return f"{figures.successes:.0f} of {trials}{failed}"
    return f"{percent(figures.success_rate)} % (the mean of {trials}){failed}"


def _range(entry: Entry) -> str:
    return f"{percent(entry.figures.success_low)} to {percent(entry.figures.success_high)} %"


def _price(entry: Entry) -> str:
    if entry.drop is None:
        return ""
    points = percent(abs(entry.drop.mean), 1)
    return f", at {points} points of accuracy" if entry.drop.mean >= 0 else f", with {points} points more accuracy"


def _direction(paired: Comparison) -> int:
    """1: success is higher, -1: lower, 0: that is not certain."""
    if paired.p is None or paired.p > 0.05:
        return 0
    return (paired.low > 0) - (paired.high < 0)


def _changes(what: str, paired: Comparison) -> str:
    low, high = sorted((abs(paired.low), abs(paired.high)))
    verb = ("raise" if paired.low > 0 else "lower") + ("" if what == "the poisons" else "s")
    return f"{what} {verb} success by {percent(low)} to {percent(high)} points{_moved(what, paired)}"


def _may_change(what: str, paired: Comparison) -> str:
    verb = "raise" if what == "the poisons" else "lowers"
    points = f"{100 * paired.low:+.0f} to {100 * paired.high:+.0f} points"
    doubt = f", {probability(paired.p)}" if paired.low > 0 or paired.high < 0 else ""
    return f"{what} {verb} success ({points}{doubt}{_moved(what, paired)})"


def _moved(what: str, paired: Comparison) -> str:
    return f", margin {logits(paired.margin)}" if paired.margin and what != "the poisons" else ""


def _of_many(compared: Sequence[Comparison]) -> str:
    lower, undecided, higher = ([_direction(paired) for paired in compared].count(way) for way in (-1, 0, 1))
    least = min((paired.n for paired in compared if not _direction(paired)), default=ENOUGH_TRIALS)
    return (f"{lower} of these defenses lower success, {higher} raise it (95 %, each by itself), for {undecided} "
            f"{_these(least)} cannot tell{_advice(least)}")  # fmt: skip


def _these(trials: int) -> str:
    if trials >= ENOUGH_TRIALS:
        return "these trials"
    return "a single trial" if trials == 1 else "so few trials"


def _advice(trials: int) -> str:
    return f": --trials {ENOUGH_TRIALS} narrows it" if trials < ENOUGH_TRIALS else ""


def _and(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)

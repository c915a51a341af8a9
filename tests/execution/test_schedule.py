"""Order of work: longest way first, nothing waits for what it does not need, and nothing follows a failure."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from bench.execution.past import Past, expected
from bench.execution.plan import plan
from bench.execution.schedule import ANY_TIME, Schedule, Step
from bench.execution.tasks import Crafting, SurrogateTraining, VictimTraining, missing, scheduled
from bench.request.request import Request
from tests.plans import prepare
from tests.tiny import ATTACK_SETS, SETS

# Two sets of poisons, the second slow, and two victims for each; one victim of none.
SURROGATE, QUICK, SLOW = 0, 1, 2
STUDY = [
    Step("surrogate", "surrogates", (), 2.0),
    Step("quick poisons", "poisons", (SURROGATE,), 1.0),
    Step("slow poisons", "poisons", (SURROGATE,), 9.0),
    Step("clean victim", "victims", (), 1.0),
    Step("short victim", "victims", (QUICK,), 1.0),
    Step("long victim", "victims", (QUICK,), 3.0),
    Step("last victim", "victims", (QUICK, SLOW), 1.0),
]


def names(schedule: Schedule) -> list[str]:
    """Of all that may begin, in order."""
    return [schedule.steps[place].unit for place in schedule]


def test_the_longest_way_to_the_end_comes_first() -> None:
    schedule = Schedule(STUDY)
    assert schedule.ways == [12.0, 4.0, 10.0, 1.0, 1.0, 3.0, 1.0]
    assert names(schedule) == ["surrogate", "clean victim"]
    schedule.end(SURROGATE, True)
    assert names(schedule) == ["slow poisons", "quick poisons"]


def test_slow_poisons_hold_back_only_their_own_victims() -> None:
    schedule = Schedule(STUDY)
    names(schedule)
    schedule.end(SURROGATE, True)
    names(schedule)
    schedule.end(QUICK, True)
    assert names(schedule) == ["long victim", "short victim"]
    schedule.end(SLOW, True)
    assert names(schedule) == ["last victim"]


def test_what_stands_on_a_failure_is_never_handed_out() -> None:
    schedule = Schedule(STUDY)
    names(schedule)
    schedule.end(SURROGATE, True)
    names(schedule)
    schedule.end(SLOW, False)
    schedule.end(QUICK, True)
    assert names(schedule) == ["long victim", "short victim"]
    assert (schedule.done["poisons"], schedule.totals["poisons"]) == (2, 2)


def test_a_lower_turn_comes_before_a_longer_way_and_what_it_needs_comes_with_it() -> None:
    turns = {"short victim": (0, 0), "long victim": (0, 1), "last victim": (1, 0)}
    schedule = Schedule([replace(step, turn=turns.get(step.unit, ANY_TIME)) for step in STUDY])
    assert done_by_one(schedule) == [
        "surrogate", "quick poisons", "short victim", "long victim", "slow poisons", "last victim", "clean victim"
    ]  # fmt: skip


def done_by_one(schedule: Schedule) -> list[Any]:
    """The units in the order in which a worker alone does them."""
    shop = Shop(schedule, 1)
    shop.run()
    return [schedule.steps[place].unit for place, _, _ in shop.log]


@dataclass
class Shop:
    """Workers that do a schedule; times in seconds of its steps. log: (place, begin, end)."""

    schedule: Schedule
    workers: int
    log: list[tuple[int, float, float]] = field(default_factory=list)

    def run(self) -> float:
        now, running = 0.0, dict[int, float]()
        while True:
            for place in itertools.islice(self.schedule, self.workers - len(running)):
                running[place] = now + self.schedule.steps[place].seconds
                self.log.append((place, now, running[place]))
            if not running:
                return now
            place = min(running, key=running.__getitem__)
            now = running.pop(place)
            self.schedule.end(place, True)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_graph_everything_is_done_once_after_its_needs_and_no_worker_is_idle_beside_work(
    seed: int, workers: int
) -> None:
    """Graham's bound for any order that leaves no worker idle: (sum + (workers - 1) * longest chain) / workers."""
    chance = random.Random(seed)
    steps = [
        Step(
            place, "units", tuple(chance.sample(range(place), min(place, chance.choice([0, 0, 1, 3])))), chance.random()
        )
        for place in range(40)
    ]
    shop = Shop(Schedule(steps), workers)
    wall = shop.run()
    ends = {place: end for place, _, end in shop.log}
    assert sorted(place for place, _, _ in shop.log) == list(range(40))
    assert all(ends[need] <= begin for place, begin, _ in shop.log for need in steps[place].needs)
    total, longest = sum(step.seconds for step in steps), max(shop.schedule.ways)
    assert max(longest, total / workers) - 1e-9 <= wall <= (total + (workers - 1) * longest) / workers + 1e-9


def test_the_tasks_of_a_study_need_what_is_not_there_yet(tmp_path: Path) -> None:
    plan = prepare("quick", [*SETS, *ATTACK_SETS, "trials=2"], attack="gm", defenses=["friends-b"])
    tasks = missing(plan.victims(tmp_path).values())
    schedule = scheduled(tasks, expected(tasks.values(), Past([])))
    assert dict(schedule.totals) == {"surrogates": 2, "poisons": 2, "victims": 6}
    for step in schedule.steps:
        needs = [schedule.steps[place].unit for place in step.needs]
        if isinstance(step.unit, Crafting):
            assert [type(need) for need in needs] == [SurrogateTraining] * 2
        elif isinstance(step.unit, VictimTraining) and step.unit.attack.label == "gm":
            assert [(type(need), need.index) for need in needs] == [(Crafting, step.unit.index)]
        else:
            assert not needs
    order = [type(schedule.steps[place].unit) for place in schedule]
    assert order == [SurrogateTraining] * 2 + [VictimTraining] * 2  # the victims of the clean control


def test_trial_by_trial_whole_comparisons_end_first_and_blocks_follow_one_another(tmp_path: Path) -> None:
    """Though what comes late takes longest, by its epochs: poisons, and all of the second block."""
    common = Request(set=(*SETS, "trials=3"), only=True, order="trials")
    first = common.changed(defenses=("none", "friends-b"))
    second = common.changed(attacks=("random-noise",), defenses=("friends-b",), set=(*common.set, "train.epochs=9"))
    tasks = missing(plan([first, second]).victims(tmp_path).values())
    order = done_by_one(scheduled(tasks, expected(tasks.values(), Past([]))))
    victims = [(task.attack.label, task.index) for task in order if isinstance(task, VictimTraining)]
    assert victims == [("gm", n // 2) for n in range(6)] + [("random-noise", n) for n in range(3)]
    crafted = [at for at, task in enumerate(order) if isinstance(task, Crafting) and task.attack.label == "gm"]
    assert crafted == [2, 5, 8], "each just before the two victims of its trial, after two surrogates"


def test_what_the_store_holds_is_no_task_and_nothing_waits_for_it(tmp_path: Path) -> None:
    plan = prepare("quick", [*SETS, *ATTACK_SETS, "trials=1"], attack="gm", defenses=["friends-b"], only=True)
    (victim,) = plan.victims(tmp_path).values()
    (crafting,) = victim.needs()
    assert len(missing([victim])) == 4
    path = tmp_path / "store" / "poisons" / crafting.key[:2] / f"{crafting.key}.safetensors"
    path.parent.mkdir(parents=True)
    path.touch()
    tasks = missing([victim])
    assert list(tasks.values()) == [victim] and scheduled(tasks, [1.0]).steps[0].needs == ()


def test_what_nobody_knows_takes_as_long_for_its_epochs_as_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [*SETS, *ATTACK_SETS, "trials=1", "train.epochs=4", "surrogate.epochs=6"]
    plan = prepare("quick", sets, attack="gm", defenses=["friends-b", "noise-b"])
    tasks = missing(plan.victims(tmp_path).values())
    past = Past([])

    def known(task: object) -> float | None:
        return {"none": 8.0, "noise-b": 40.0}.get(task.defense.label) if isinstance(task, VictimTraining) else None

    guesses = {str(task): seconds for task, seconds in zip(tasks.values(), expected(tasks.values(), past), strict=True)}
    assert guesses["surrogate 0"] == 6.0 and guesses["victim of gm x none trial 0"] == 4.0
    monkeypatch.setattr(past, "seconds", known)
    told = {str(task): seconds for task, seconds in zip(tasks.values(), expected(tasks.values(), past), strict=True)}
    assert told["victim of gm x noise-b trial 0"] == 40.0
    assert told["surrogate 0"] == 2.0 * 6 and told["victim of gm x friends-b trial 0"] == 2.0 * 6  # 2 s an epoch

"""Compositions `a+b`: order, isolation of the parts, what is refused and why, and a whole run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.cli import main
from bench.foundation.errors import BadInput
from bench.foundation.settings import Settings
from bench.request.protocol_file import resolve
from bench.science.classifier import Classifier
from bench.science.composition import Composition
from bench.science.dataset import Images
from bench.science.defense import Defense, Job, Services
from bench.science.selection import SelectedDefense, select_defenses
from bench.science.training import Batch, Recipe, Run, train
from tests.plugins import make_defense
from tests.tiny import ATTACK_SETS, SETS

STUDY = [argument for item in (*SETS, *ATTACK_SETS) for argument in ("--set", item)]
RECIPE = Recipe(epochs=3, batch=8, lr=0.05, drops=(), augment="none", flip=False)


def pick(reference: str, *rest: tuple[Any, ...]) -> SelectedDefense:
    protocol, _ = resolve("quick", [])
    return select_defenses([reference], protocol, list(rest))[0]


class Shift(Defense):
    """Adds a constant before augmentation and notes who is running."""

    def __init__(self, name: str, by: float, log: list[Any]) -> None:
        super().__init__(Settings(), name)
        self.by, self.log = by, log

    def epoch(self, run: Run, epoch: int) -> None:
        run.side["count"] = run.side.get("count", 0) + 1
        self.log.append((self.name, run.owner, run.side["count"], run.stream("x").initial_seed()))

    def batch(self, batch: Batch, run: Run, stage: str) -> Batch:
        if stage == "pixel":
            batch.pixels = batch.pixels * 2 + self.by
        return batch


def test_parts_follow_each_other_and_do_not_meet(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images], make_run: Callable[..., Run]
) -> None:
    log: list[Any] = []
    both = Composition([Shift("one", 1.0, log), Shift("two", 10.0, log)], "one+two")
    run = make_run(make_small(), make_images(8), owner="one+two")
    rows = torch.arange(4)
    batch = both.batch(Batch(torch.zeros(4, 3, 8, 8), run.data.labels[rows], rows, rows), run, "pixel")
    assert (batch.pixels == 2 * 1 + 10).all()
    both.epoch(run, 0)
    both.epoch(run, 1)
    assert [entry[:3] for entry in log] == [("one", "one", 1), ("two", "two", 1), ("one", "one", 2), ("two", "two", 2)]
    assert log[0][3] != log[1][3]
    assert run.owner == "one+two" and "count" not in run.side


def test_a_part_draws_the_same_numbers_alone_and_in_company(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images], weights_of: Callable[[nn.Module], Tensor]
) -> None:
    """noise-b beside a defense that does nothing trains the same network as noise-b alone."""
    nothing = Defense(Settings(), "nothing")

    def weights(hooks: Any) -> Tensor:
        return weights_of(train(make_small(), make_images(24), RECIPE, seed=0, hooks=hooks).model)

    alone = weights(make_defense("noise-b"))
    assert torch.equal(alone, weights(Composition([nothing, make_defense("noise-b")], "c")))
    assert torch.equal(alone, weights(Composition([make_defense("noise-b"), nothing], "c")))
    assert not torch.equal(alone, weights(Composition([make_defense("noise-b"), make_defense("noisy-sgd")], "c")))


def test_filters_feed_each_other(services: Services, make_images: Callable[..., Images]) -> None:
    class Without(Defense):
        def __init__(self, label: int) -> None:
            super().__init__(Settings(), f"without {label}")
            self.label = label

        def jobs(self, data: Images, services: Services) -> Iterator[Job]:
            yield Job(data.subset(data.labels != self.label))

    (job,) = Composition([Without(0), Without(2)], "c").jobs(make_images(9), services)
    assert job.data.labels.unique().tolist() == [1]


def test_each_part_is_handed_only_the_knowledge_that_it_declares(
    services: Services, make_images: Callable[..., Images]
) -> None:
    seen = {}

    class Asking(Defense):
        def jobs(self, data: Images, services: Services) -> Iterator[Job]:
            seen[self.name] = (services.poison_rate, services.seed)
            yield Job(data)

    class Knowing(Asking):
        needs = ("poison_rate",)

    lent = dataclasses.replace(services, poison_rate=0.25, seed=5)
    list(Composition([Asking(Settings(), "a"), Knowing(Settings(), "b")], "a+b").jobs(make_images(6), lent))
    assert seen["a"][0] is None and seen["b"][0] == 0.25
    assert seen["a"][1] != seen["b"][1]


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("maxup+maxup", "different"),
        ("friends-b+", "unknown defense ''"),
        ("friends-b+no-such", "unknown defense 'no-such'"),
        ("composition+friends-b", "unknown defense 'composition'"),
        ("composition", "unknown defense 'composition'"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(
    reference: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--attack", "none", "--defense", reference, *STUDY[:-4], "--out", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    assert reason in said and said.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_two_owners_of_a_hook_are_refused() -> None:
    class Owner(Defense):
        def loss(self, losses: Any, batch: Any, run: Any) -> Any:
            return losses.max()

    class Repairing(Defense):
        def finish(self, trained: Any, services: Any) -> Any:
            return super().finish(trained, services)

    with pytest.raises(BadInput, match="both own `loss`: only one part"):
        Composition.check([Owner, type(make_defense("maxup"))], ["owner", "maxup"])
    with pytest.raises(BadInput, match="both own `finish`"):
        Composition.check([Repairing, Repairing], ["a", "b"])
    Composition.check([Owner, Repairing], ["owner", "repairing"])


def test_settings_go_to_the_parts_that_know_them() -> None:
    chosen = pick("friends-b+noisy-sgd", ("defense.mu", 8), ("defense.noisy-sgd.clip", 2.0))
    assert chosen.label == "friends-b+noisy-sgd"
    assert chosen.values()["friends-b"]["mu"] == 8 and chosen.values()["noisy-sgd"]["clip"] == 2.0
    with pytest.raises(BadInput, match=r"unknown key 'defense.m'.*mu"):
        pick("friends-b+noisy-sgd", ("defense.m", 8))
    assert pick("spectral+friends-b").needs == ("poison_rate",)
    assert len({repr(pick(name).identity()) for name in ("spectral+mixup", "mixup+spectral", "mixup")}) == 3


def test_a_composition_runs_and_says_what_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "--attack", "random-noise", "--defense", "spectral+mixup", *STUDY[:-4], "--trials", "1"]
    places = ["--out", str(tmp_path), "--tracking", "none", "--jobs", "1", "--device", "cpu", "--json"]
    assert main([*command, "--set", "defense.rate=0.1", *places]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])[-1]
    assert record["defense"] == "spectral+mixup" and record["knowledge"] == ["poison_rate"]
    assert record["settings"]["defense"]["spectral"]["rate"] == 0.1
    assert record["filter"]["dropped"] > 0 and 0 <= record["filter"]["recall"] <= 1


def test_a_filter_that_finds_its_warm_up_made_costs_what_the_first_one_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two filters share the network; each is booked as if it had trained it."""
    command = ["run", "--attack", "random-noise", "--only", *STUDY[:-4], "--trials", "1", "--set", "defense.rate=0.05"]
    places = ["--out", str(tmp_path), "--tracking", "none", "--jobs", "1", "--device", "cpu", "--json"]
    assert main([*command, "--defense", "spectral", "--defense", "spectral-percentile", *places]) == 0
    first, second = json.loads(capsys.readouterr().out.splitlines()[-1])
    shared = first["seconds"]["train.networks"]
    assert shared == second["seconds"]["train.networks"] > 0
    assert min(first["seconds"]["train"], second["seconds"]["train"]) > shared

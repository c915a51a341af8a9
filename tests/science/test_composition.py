"""Compositions `a+b`: order, isolation of the parts, what is refused and why, and a whole run."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from bench.cli import main
from bench.foundation.errors import BadInput
from bench.request.protocol_file import resolve
from bench.science.composition import Composition
from bench.science.defense import Defense, Job
from bench.science.selection import select_defenses
from bench.science.training import Batch, Recipe, train
from tests.plugins import make_defense
from tests.tiny import ATTACK_SETS, SETS

STUDY = [argument for item in (*SETS, *ATTACK_SETS) for argument in ("--set", item)]
RECIPE = Recipe(epochs=3, batch=8, lr=0.05, drops=(), augment="none", flip=False)


def pick(reference, *rest):
    protocol, _ = resolve("quick", [])
    return select_defenses([reference], protocol, list(rest))[0]


class Shift(Defense):
    """Adds a constant before augmentation and notes who is running."""

    def __init__(self, name, by, log):
        super().__init__(None, name)
        self.by, self.log = by, log

    def epoch(self, run, epoch):
        run.side["count"] = run.side.get("count", 0) + 1
        self.log.append((self.name, run.owner, run.side["count"], run.stream("x").initial_seed()))

    def batch(self, batch, run, stage):
        if stage == "pixel":
            batch.pixels = batch.pixels * 2 + self.by
        return batch


def test_parts_follow_each_other_and_do_not_meet(make_small, make_images, make_run):
    log = []
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


def test_a_part_draws_the_same_numbers_alone_and_in_company(make_small, make_images, weights_of):
    """noise-b beside a defense that does nothing trains the same network as noise-b alone."""
    nothing = Defense(None, "nothing")

    def weights(hooks):
        return weights_of(train(make_small(), make_images(24), RECIPE, seed=0, hooks=hooks).model)

    alone = weights(make_defense("noise-b"))
    assert torch.equal(alone, weights(Composition([nothing, make_defense("noise-b")], "c")))
    assert torch.equal(alone, weights(Composition([make_defense("noise-b"), nothing], "c")))
    assert not torch.equal(alone, weights(Composition([make_defense("noise-b"), make_defense("noisy-sgd")], "c")))


def test_filters_feed_each_other(services, make_images):
    class Without(Defense):
        def __init__(self, label):
            super().__init__(None, f"without {label}")
            self.label = label

        def jobs(self, data, services):
            yield Job(data.subset(data.labels != self.label))

    (job,) = Composition([Without(0), Without(2)], "c").jobs(make_images(9), services)
    assert job.data.labels.unique().tolist() == [1]


def test_each_part_is_handed_only_the_knowledge_that_it_declares(services, make_images):
    seen = {}

    class Asking(Defense):
        def jobs(self, data, services):
            seen[self.name] = (services.poison_rate, services.seed)
            yield Job(data)

    class Knowing(Asking):
        needs = ("poison_rate",)

    lent = dataclasses.replace(services, poison_rate=0.25, seed=5)
    list(Composition([Asking(None, "a"), Knowing(None, "b")], "a+b").jobs(make_images(6), lent))
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
def test_what_does_not_go_together_is_refused_with_the_reason(reference, reason, tmp_path, capsys):
    assert main(["run", "--attack", "none", "--defense", reference, *STUDY[:-4], "--out", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    assert reason in said and said.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_two_owners_of_a_hook_are_refused():
    class Owner(Defense):
        def loss(self, losses, batch, run):
            return losses.max()

    class Repairing(Defense):
        def finish(self, trained, services):
            return super().finish(trained, services)

    with pytest.raises(BadInput, match="both own `loss`: only one part"):
        Composition.check([Owner, type(make_defense("maxup"))], ["owner", "maxup"])
    with pytest.raises(BadInput, match="both own `finish`"):
        Composition.check([Repairing, Repairing], ["a", "b"])
    Composition.check([Owner, Repairing], ["owner", "repairing"])


def test_settings_go_to_the_parts_that_know_them():
    chosen = pick("friends-b+noisy-sgd", ("defense.mu", 8), ("defense.noisy-sgd.clip", 2.0))
    assert chosen.label == "friends-b+noisy-sgd"
    assert chosen.values()["friends-b"]["mu"] == 8 and chosen.values()["noisy-sgd"]["clip"] == 2.0
    with pytest.raises(BadInput, match=r"unknown key 'defense.m'.*mu"):
        pick("friends-b+noisy-sgd", ("defense.m", 8))
    assert pick("spectral+friends-b").needs == ("poison_rate",)
    assert len({repr(pick(name).identity()) for name in ("spectral+mixup", "mixup+spectral", "mixup")}) == 3


def test_a_composition_runs_and_says_what_it_was(tmp_path, capsys):
    command = ["run", "--attack", "random-noise", "--defense", "spectral+mixup", *STUDY[:-4], "--trials", "1"]
    places = ["--out", str(tmp_path), "--tracking", "none", "--jobs", "1", "--device", "cpu", "--json"]
    assert main([*command, "--set", "defense.rate=0.1", *places]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])[-1]
    assert record["defense"] == "spectral+mixup" and record["knowledge"] == ["poison_rate"]
    assert record["settings"]["defense"]["spectral"]["rate"] == 0.1
    assert record["filter"]["dropped"] > 0 and 0 <= record["filter"]["recall"] <= 1


def test_a_filter_that_finds_its_warm_up_made_costs_what_the_first_one_cost(tmp_path, capsys):
    """Two filters share the network; each is booked as if it had trained it."""
    command = ["run", "--attack", "random-noise", "--only", *STUDY[:-4], "--trials", "1", "--set", "defense.rate=0.05"]
    places = ["--out", str(tmp_path), "--tracking", "none", "--jobs", "1", "--device", "cpu", "--json"]
    assert main([*command, "--defense", "spectral", "--defense", "spectral-percentile", *places]) == 0
    first, second = json.loads(capsys.readouterr().out.splitlines()[-1])
    shared = first["seconds"]["train.networks"]
    assert shared == second["seconds"]["train.networks"] > 0
    assert min(first["seconds"]["train"], second["seconds"]["train"]) > shared

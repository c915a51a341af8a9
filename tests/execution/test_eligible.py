"""threat.eligible = correct: targets are among what a clean network classifies right, whatever is run and resumed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cli.main import main
from bench.execution import runner
from bench.execution.engines.local import Local
from bench.execution.plan import Plan
from bench.execution.tasks import Reference, missing
from bench.foundation.errors import BadInput
from bench.science import networks
from bench.science.training import to_pixels
from bench.science.workspace import Workspace
from bench.storage.record import Record
from bench.storage.records import Records, comparable
from tests import plans
from tests.setups import write_setups
from tests.tiny import SETS

# After six epochs some of the images are right, but of the cats none.
UNLEARNT = 1
LEARNT = ("train.epochs=6", "dataset.train_per_class=20", "dataset.test_per_class=10")
CORRECT = (*SETS, *LEARNT, "trials=2", "threat.eligible=correct")


def prepare(*sets: str, attack: str = "random-noise", **options: Any) -> Plan:
    return plans.prepare("quick", [*CORRECT, *sets], attack=attack, **{"only": True, **options})


def execute(plan: Plan, out: Path, jobs: int = 1) -> list[Record]:
    return runner.execute(plan, out, Local(jobs, 1, quiet=True), lambda line: None, lambda record: None)


def bare(records: list[Record]) -> list[dict[str, Any]]:
    return [comparable(record) for record in records]


def judged_right(plan: Plan, out: Path) -> torch.Tensor:
    """Whether the network in the store classifies each test image right."""
    space = Workspace.at(plan.study, out, lambda *_: None, print)
    (path,) = (out / "store" / "networks").rglob("*.safetensors")
    artefact = space.store.get("networks", path.stem)
    assert artefact is not None and artefact.meta["identity"]["kind"] == "reference"
    network = space.networks.start(networks.Start("convnet", 0, len(plan.study.dataset.classes)))
    network.load_state_dict(artefact.tensors)
    test = plan.study.dataset.test
    return network.eval()(to_pixels(test.images)).argmax(1) == test.labels


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record]]:
    out = tmp_path_factory.mktemp("done")
    return out, execute(prepare(), out)


def test_every_target_is_classified_right_and_all_else_is_as_drawn_among_any(done: tuple[Path, list[Record]]) -> None:
    out, records = done
    plan = prepare()
    right, test = judged_right(plan, out), plan.study.dataset.test
    among_any = plans.prepare("quick", [*CORRECT, "threat.eligible=any"], attack="random-noise", only=True).study
    moved = 0
    for index in (index for index in range(12) if among_any.case(index).trial.source_class != UNLEARNT):
        draw, other = plan.study.case(index).trial.as_dict(), among_any.case(index).trial
        assert right[test.rows_of(torch.tensor(draw["target_ids"]))].all()
        assert {**draw, "target_ids": 0} == {**other.as_dict(), "target_ids": 0}
        was_right = bool(right[test.rows_of(other.target_ids)].all())
        assert (draw["target_ids"] == other.target_ids.tolist()) == was_right
        moved += not was_right
    assert 0 < moved < 10
    assert [record["draw"] for record in records] == [plan.study.case(index).trial.as_dict() for index in range(2)]
    assert {record["settings"]["protocol"]["threat"]["eligible"] for record in records} == {"correct"}


@pytest.mark.parametrize("lost", ["store/kept", "store"])
def test_what_is_lost_comes_out_equal(done: tuple[Path, list[Record]], tmp_path: Path, lost: str) -> None:
    out = shutil.copytree(done[0], tmp_path / "out")
    shutil.rmtree(out / "records" / "quick" / "random-noise" / "none")
    shutil.rmtree(out / lost)
    assert bare(execute(prepare("trials=1"), out)) == bare(done[1][:1])


def test_trials_depend_neither_on_attack_nor_defense_nor_number(
    done: tuple[Path, list[Record]], tmp_path: Path
) -> None:
    (record,) = execute(prepare("trials=1", attack="none", defenses=("noise-b",)), tmp_path)
    assert record["draw"] == done[1][0]["draw"]


@pytest.mark.slow
def test_two_workers_give_the_records_of_one(done: tuple[Path, list[Record]], tmp_path: Path) -> None:
    assert bare(execute(prepare(), tmp_path, jobs=2)) == bare(done[1])
    assert len(list((tmp_path / "store" / "networks").rglob("*.safetensors"))) == 1


def test_in_transfer_the_reference_network_begins_as_the_victim_does(tmp_path: Path) -> None:
    sets = ("threat.scenario=transfer", "pretrain.epochs=4", "trials=1")
    plan = prepare(*sets)
    kinds = [str(task) for task in missing(plan.victims(tmp_path).values()).values()][:2]
    assert kinds == ["pretrained convnet 0", "reference network"]
    (record,) = execute(plan, tmp_path)
    right = Workspace.at(plan.study, tmp_path, lambda *_: None, print).networks.right()
    assert record["draw"]["target_ids"][0] in right.tolist()


def test_a_plan_trains_nothing_and_says_when_targets_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "train", lambda *_, **__: pytest.fail("trained"))
    sets = [word for item in CORRECT for word in ("--set", item)]
    out = tmp_path / "out"
    assert main(["run", "--attack", "gm", *sets, "--plan", "--out", str(out), "--jobs", "1"]) == 0
    said = capsys.readouterr().out
    assert "0 pretrained networks, 1 reference networks, 2 surrogates, 2 poisons, 4 victims" in said
    assert "targets are drawn when the reference network is trained" in said and not out.exists()


def test_a_class_without_a_right_image_costs_its_trials(tmp_path: Path) -> None:
    records = execute(prepare("threat.pair=cat,coffee", "trials=1", defenses=("none",)), tmp_path)
    (record,) = records
    assert record["status"] == "failed" and "draw" not in record
    assert "classifies 0 test images of class 'cat' right, but a trial needs 1; fix: " in str(record["error"])
    assert bare(list(Records(tmp_path / "records").all())) == bare(records)


def test_a_reference_network_that_fails_is_the_cause_and_is_not_trained_again_for_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def broken(*_: object, **__: object) -> None:
        trained.append(1)
        raise RuntimeError("no luck")

    monkeypatch.setattr(networks, "train", broken)
    records = execute(prepare(), tmp_path)
    assert {record["error"] for record in records} == {"reference network failed: RuntimeError: no luck"}
    assert len(trained) == 1


def test_its_key_follows_the_victims_training_and_no_attack_or_defense(tmp_path: Path) -> None:
    def key(*sets: str, **options: Any) -> str:
        return Reference.of(prepare(*sets, **options).study, tmp_path).key

    assert key() == key(attack="none", defenses=("noise-b",)) == key("threat.budget=0.02", "surrogate.epochs=1")
    others = [key("train.epochs=2"), key(seed=1), key("model=lenet"), key("dataset.train_per_class=12")]
    assert len({key(), *others}) == 5


def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="'threat.eligible': 'right'; allowed: one of any, correct"):
        prepare("threat.eligible=right")
    with pytest.raises(BadInput, match="only a run can draw targets; fix: --set threat.eligible=any"):
        prepare(seed=77).study.draw(0)
    drawn = plans.prepare("quick", SETS, attack="none", only=True).study.case(0).trial
    write_setups(tmp_path / "setups.pickle", [drawn])
    with pytest.raises(BadInput, match="the list brings its own targets; fix: --set threat.eligible=any"):
        plans.prepare("quick", [*SETS, "threat.eligible=correct"], setups=tmp_path / "setups.pickle")

"""The journey: craft once and share, resume, equal records, failures that cost only themselves."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.attacks.gradient_matching import GradientMatching
from bench.defenses.shared.filtering import Filter
from bench.execution import runner
from bench.execution.engines.local import Local
from bench.execution.plan import Plan
from bench.execution.recording import failure
from bench.foundation.errors import BadInput, TrialFailed
from bench.foundation.registry import register
from bench.science import victim
from bench.science.attack import Attack, Scene
from bench.science.crafting import poisons_of
from bench.science.defense import Defense
from bench.science.evaluation import ModelPredictor
from bench.science.identity import identities
from bench.science.poisons import Poisons
from bench.science.workspace import Workspace
from bench.storage.record import Record
from bench.storage.records import Records, comparable
from bench.storage.store import Store
from tests import plans
from tests.tiny import ATTACK_SETS, SETS


def prepare(
    attack: str = "gm", defenses: tuple[str, ...] = ("friends-b",), sets: tuple[str, ...] = (), **options: Any
) -> Plan:
    own = ATTACK_SETS if attack == "gm" else []
    return plans.prepare("quick", [*SETS, *own, *sets], attack=attack, defenses=defenses, **options)


def execute(plan: Plan, out: Path, jobs: int = 1) -> tuple[list[Record], list[str]]:
    said: list[str] = []
    results = runner.execute(plan, out, Local(jobs, 1, quiet=True), said.append, lambda record: None)
    return results, said


def bare(records: list[Record]) -> list[dict[str, Any]]:
    return [comparable(record) for record in records]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record]]:
    """A finished study: clean control, undefended and friends-b, two trials."""
    out = tmp_path_factory.mktemp("done")
    results, _ = execute(prepare(), out)
    return out, results


def test_the_cells_are_control_undefended_and_defended(done: tuple[Path, list[Record]]) -> None:
    _, results = done
    names = [(record["attack"], record["defense"], record["trial"]) for record in results]
    cells = [("none", "none"), ("gm", "none"), ("gm", "friends-b")]
    assert names == [(*cell, trial) for cell in cells for trial in (0, 1)]
    assert all(record["status"] == "done" for record in results)
    assert all(record["success"] in (0.0, 1.0) and 0 <= record["clean_accuracy"] <= 1 for record in results)  # type: ignore[operator]
    assert all(record["seconds"]["train"] > 0 for record in results)


def test_defenses_face_the_same_poisons_and_trial(done: tuple[Path, list[Record]]) -> None:
    _, results = done
    undefended, defended = results[2:4], results[4:6]
    for one, other in zip(undefended, defended, strict=True):
        assert one["poisons"] == other["poisons"] and one["draw"] == other["draw"]
    assert results[2]["poisons"]["key"] != results[3]["poisons"]["key"]


def test_a_second_run_does_no_work(done: tuple[Path, list[Record]], monkeypatch: pytest.MonkeyPatch) -> None:
    out, results = done

    def never(*_: object, **__: object) -> None:
        raise AssertionError("work was done again")

    monkeypatch.setattr(victim, "train", never)  # the module: which function trains is handed to nobody
    again, said = execute(prepare(), out)
    assert bare(again) == bare(results)
    assert all(record["cached"] for record in again) and said == []


def test_another_defense_crafts_and_trains_no_surrogate(
    done: tuple[Path, list[Record]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(done[0], tmp_path / "out")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("crafted again")

    monkeypatch.setattr(GradientMatching, "craft", never)
    results, _ = execute(prepare(defenses=("noise-u",)), out)
    assert [record["cached"] for record in results] == [True] * 4 + [False] * 2
    assert all(record["status"] == "done" and record["reused"]["poisons"] for record in results[4:])


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["records", "store/networks", "store/poisons", "store"])
def test_what_is_lost_is_made_again_and_comes_out_equal(
    done: tuple[Path, list[Record]], tmp_path: Path, lost: str
) -> None:
    out = shutil.copytree(done[0], tmp_path / "out")
    shutil.rmtree(out / lost)
    shutil.rmtree(out / "records", ignore_errors=True)
    again, _ = execute(prepare(), out)
    assert bare(again) == bare(done[1])


@pytest.mark.slow
def test_two_workers_give_the_records_of_one(done: tuple[Path, list[Record]], tmp_path: Path) -> None:
    results, _ = execute(prepare(), tmp_path, jobs=2)
    assert bare(results) == bare(done[1])


def test_a_trial_does_not_depend_on_how_many_are_run(done: tuple[Path, list[Record]], tmp_path: Path) -> None:
    results, _ = execute(prepare(sets=("trials=1",)), tmp_path)
    assert bare(results) == bare(done[1][::2])


def test_a_damaged_poison_file_is_found_and_made_again(done: tuple[Path, list[Record]], tmp_path: Path) -> None:
    out = shutil.copytree(done[0], tmp_path / "out")
    shutil.rmtree(out / "records")
    (first, *_) = sorted((out / "store" / "poisons").rglob("*.safetensors"))
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(bytes(data))
    again, said = execute(prepare(), out)
    assert bare(again) == bare(done[1])
    assert [line for line in said if "damaged" in line and first.name in line]


def test_the_stored_poisons_are_what_the_record_says(done: tuple[Path, list[Record]]) -> None:
    out, results = done
    study = prepare().study
    for record in results[2:]:
        artefact = Store(out / "store").get("poisons", record["poisons"]["key"])
        assert artefact is not None
        train = study.dataset.train
        base = train.images[train.rows_of(artefact.tensors["ids"])]
        assert artefact.tensors["ids"].tolist() == record["draw"]["base_ids"]
        change = (artefact.tensors["images"].int() - base.int()).abs().max().item()
        assert change == record["poisons"]["max_change"] <= record["poisons"]["eps"]


def test_settings_that_shape_numbers_change_the_keys() -> None:
    def keys(*sets: str, seed: int = 0) -> tuple[str, str]:
        plan = prepare(sets=sets, seed=seed)
        cell = plan.cells[-1]
        wanted = identities(plan.study).record(cell.attack, cell.defense, 0)
        from bench.storage.store import key_of

        return wanted["key"], key_of(identities(plan.study).poisons(cell.attack, plan.study.case(0)))

    record, poisons = keys()
    assert keys("trials=9") == (record, poisons)
    assert keys("defense.mu=8")[0] != record and keys("defense.mu=8")[1] == poisons
    for change in ("threat.eps=8", "attack.steps=4", "train.epochs=3", "dataset.deviation=0.3", "model=lenet"):
        other = keys(change)
        assert other[0] != record and other[1] != poisons, change
    assert keys(seed=1)[0] != record and keys(seed=1)[1] != poisons


@register("attack", "test-crash")
class CrashingAttack(Attack):
    """An attack for tests, which fails on trial 1 and makes legal poisons of zero change otherwise."""

    uses_surrogates = False

    def craft(self, scene: Scene) -> Poisons:
        if scene.trial.index == 1:
            raise RuntimeError("no luck\nwith trial 1")
        return scene.poisons(torch.zeros_like(scene.base_pixels()))


@register("attack", "test-cheat")
class CheatingAttack(Attack):
    """An attack for tests, which goes one level beyond eps."""

    uses_surrogates = False

    def craft(self, scene: Scene) -> Poisons:
        bases = scene.bases
        return Poisons(bases.images.cpu() ^ 64, bases.ids.cpu(), bases.labels.cpu())


@register("defense", "test-empty")
class EmptyingDefense(Defense):
    """A defense for tests, which throws every sample away after the first epoch."""

    def epoch(self, run: Any, epoch: int) -> None:
        run.active[:] = epoch == 0


@register("defense", "test-lost-class")
class ClassLosingFilter(Filter):
    """A filter for tests, which keeps nothing of class 2."""

    def kept(self, features: torch.Tensor, labels: torch.Tensor, services: Any) -> torch.Tensor:
        return labels != 2


@register("defense", "test-lost-all")
class AllLosingFilter(Filter):
    """A filter for tests, which keeps nothing."""

    def kept(self, features: torch.Tensor, labels: torch.Tensor, services: Any) -> torch.Tensor:
        return labels < 0


@register("defense", "test-nan-features")
class BlindFilter(Filter):
    """A filter for tests, whose network has weights that are not finite."""

    def jobs(self, data: Any, services: Any) -> Any:
        def fit(*who: Any) -> Any:
            model = services.fit(*who)
            model.body[0].weight.data.fill_(float("nan"))
            return model

        return super().jobs(data, replace(services, fit=fit))

    def kept(self, features: torch.Tensor, labels: torch.Tensor, services: Any) -> torch.Tensor:
        return torch.ones_like(labels, dtype=torch.bool)


@register("defense", "test-nan-loss")
class LossBreakingDefense(Defense):
    """A defense for tests, whose loss is not finite from epoch 1 on."""

    def loss(self, losses: torch.Tensor, batch: Any, run: Any) -> torch.Tensor:
        return losses.mean() * (float("nan") if run.current_epoch else 1)


FAILING = {
    "test-lost-class": "defense 'test-lost-class' left no training sample of class 2",
    "test-lost-all": "defense 'test-lost-all' left no training sample of class 0",
    "test-nan-features": "the warm-up network's features are not finite",
    "test-nan-loss": "epoch 1: the training loss is not finite; fix: a smaller train.lr",
    "test-empty": "epoch 1: the defense left no training sample",
}


def test_defenses_that_cannot_go_on_fail_with_their_cause_and_the_run_goes_on(tmp_path: Path) -> None:
    plan = prepare("random-noise", (*FAILING, "noise-u"), ("trials=1",), only=True)
    results, said = execute(plan, tmp_path)
    assert {record["defense"]: record["error"] for record in results[:-1]} == FAILING
    assert all((record["status"], record["success"]) == ("failed", None) for record in results[:-1])
    assert (results[-1]["defense"], results[-1]["status"]) == ("noise-u", "done")
    kept = {record["defense"]: record for record in Records(tmp_path / "records").all()}
    assert {name: kept[name]["error"] for name in FAILING} == FAILING
    assert all(any(cause in line for line in said) for cause in FAILING.values())


def test_a_crash_while_crafting_costs_that_trial_only(tmp_path: Path) -> None:
    plan = prepare("test-crash", ("none",))
    results, said = execute(plan, tmp_path)
    assert [record["status"] for record in results] == ["done", "done", "done", "failed"]
    assert results[3]["error"] == "crafting failed: RuntimeError: no luck with trial 1"
    assert results[3]["success"] is None
    assert any("no luck" in line for line in said)
    (log,) = (tmp_path / "logs").iterdir()
    assert "Traceback" in log.read_text()


def test_a_failed_trial_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = prepare("test-crash", ("none",))
    execute(plan, tmp_path)
    monkeypatch.setattr(
        CrashingAttack, "craft", lambda self, scene: scene.poisons(torch.zeros_like(scene.base_pixels()))
    )
    results, _ = execute(plan, tmp_path)
    assert [record["status"] for record in results] == ["done"] * 4
    assert [record["cached"] for record in results] == [True, True, True, False]
    assert sorted(record["status"] for record in Records(tmp_path / "records").all()) == ["done"] * 4


def test_poisons_beyond_eps_fail_the_trial(tmp_path: Path) -> None:
    results, _ = execute(prepare("test-cheat", ("none",), only=True), tmp_path)
    assert {record["status"] for record in results} == {"failed"}
    assert "more than eps = " in results[0]["error"]  # type: ignore[operator]


def test_only_leaves_the_other_cells_out() -> None:
    plan = prepare(only=True)
    assert [(cell.attack.label, cell.defense.label) for cell in plan.cells] == [("gm", "friends-b")]


def test_the_clean_control_needs_no_attack_cell() -> None:
    plan = prepare("none", ("friends-b",))
    assert [(cell.attack.label, cell.defense.label) for cell in plan.cells] == [("none", "none"), ("none", "friends-b")]


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (("threat.budget=0.5",), "threat.budget 0.5 asks for 50 poisons of one class"),
        (("threat.targets=9",), "threat.targets 9"),
        (("train.shift=16",), "train.shift"),
        (("dataset.size=64",), "dataset.size"),
        (("model=lenet", "dataset.size=8"), "needs images of at least 16 pixels"),
    ],
)
def test_what_cannot_work_stops_before_any_work(sets: tuple[str, ...], expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        prepare(sets=sets)


def test_noise_from_another_architecture_is_made_once(tmp_path: Path) -> None:
    plan = prepare(
        "random-noise", ("friends-b",), ("defense.source_model=lenet", "defense.start=1", "trials=1"), only=True
    )
    results, _ = execute(plan, tmp_path)
    assert results[0]["status"] == "done"
    (made,) = (tmp_path / "store" / "networks").rglob("*.safetensors")
    shutil.rmtree(tmp_path / "records")
    before = made.stat().st_mtime_ns
    again, _ = execute(plan, tmp_path)
    assert bare(again) == bare(results) and made.stat().st_mtime_ns == before


def test_trial_failed_is_a_clean_message(tmp_path: Path) -> None:
    plan = prepare("random-noise", ("none",), only=True)
    space, case = Workspace.at(plan.study, tmp_path, lambda *_: None, print), plan.study.case(0)
    cell, records = plan.cells[0], Records(tmp_path / "records")
    record = failure(space, records, case, cell.attack, cell.defense, str(TrialFailed("because")))
    assert (record["status"], record["error"], record["success"]) == ("failed", "because", None)


def test_a_failure_does_not_replace_what_another_run_has_finished(
    done: tuple[Path, list[Record]], tmp_path: Path
) -> None:
    out = shutil.copytree(done[0], tmp_path / "out")
    plan = prepare()
    space, case = Workspace.at(plan.study, out, lambda *_: None, print), plan.study.case(0)
    cell, records = plan.cells[2], Records(out / "records")
    record = failure(space, records, case, cell.attack, cell.defense, "its process was killed twice")
    assert comparable(record) == comparable(done[1][4])
    assert bare(list(Records(out / "records").all())) == bare(list(Records(done[0] / "records").all()))


class Keeping(Defense):
    """Keeps work of two kinds, notes what it found, suspects samples, and lends its network in two ways."""

    needs = ("clean_holdout",)
    made: list[str] = []

    def external(self) -> dict[str, Any]:
        return {"file": "abc"}

    def jobs(self, data: Any, services: Any) -> Any:
        def costly() -> dict[str, torch.Tensor]:
            self.made.append("costly")
            time.sleep(0.2)
            return {"sum": data.images.sum()[None]}

        def elsewhere() -> dict[str, torch.Tensor]:
            self.made.append("elsewhere")
            time.sleep(0.2)
            return {"one": torch.ones(1)}

        kept = services.keep("costly", {"data": data.digest}, costly)
        services.keep("elsewhere", {}, elsewhere, external=True)
        services.note("sum", int(kept["sum"]))
        services.note("holdout", services.clean_holdout.ids.tolist())
        assert services.poison_rate is None and services.public is None
        yield from super().jobs(data, services)

    def epoch(self, run: Any, epoch: int) -> None:
        run.suspected[:7] = True

    def finish(self, trained: Any, services: Any) -> Any:
        predictor = super().finish(trained, services)
        predictor.variants = {"upside down": ModelPredictor(UpsideDown(trained[0].model))}  # type: ignore[attr-defined]
        return predictor


class UpsideDown(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return -self.model(pixels)


def test_what_a_defense_keeps_notes_suspects_and_varies(tmp_path: Path) -> None:
    register("defense", "keeping")(Keeping)
    plan = prepare("random-noise", ("keeping",), only=True)
    Keeping.made.clear()
    records, _ = execute(plan, tmp_path)
    assert [record["error"] for record in records] == [None, None]
    assert sorted(Keeping.made) == ["costly", "costly", "elsewhere"]  # the second depends on no data
    study = plan.study
    for record in records:
        space = Workspace.at(study, tmp_path, lambda *_: None, print)
        images = poisons_of(space, study.case(record["trial"]), plan.cells[0].attack)[0]
        assert record["notes"]["sum"] == int(images.applied_to(study.case(record["trial"]).clean).images.sum())
        assert not set(record["notes"]["holdout"]) & set(record["draw"]["base_ids"])
        assert record["filter"]["dropped"] == 7 and record["external"] == {"file": "abc"}  # type: ignore[index]
        other = record["variants"]["upside down"]
        assert other.keys() == record["outcome"].keys()  # type: ignore[union-attr]
        assert other["target_predictions"] != record["outcome"]["target_predictions"]  # type: ignore[index]
        seconds = record["seconds"]
        assert seconds["external"] >= 0.2 and 0.2 <= seconds["train.networks"] < seconds["train"]
    shutil.rmtree(tmp_path / "records")
    again, _ = execute(plan, tmp_path)
    assert sorted(Keeping.made) == ["costly", "costly", "elsewhere"] and bare(again) == bare(records)


def test_what_is_used_from_outside_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    register("defense", "keeping")(Keeping)

    def key() -> str:
        plan = prepare("none", ("keeping",), only=True)
        return str(identities(plan.study).record(plan.cells[0].attack, plan.cells[0].defense, 0)["key"])

    before = key()
    monkeypatch.setattr(Keeping, "external", lambda self: {"file": "abd"})
    assert key() != before

    def missing(self: Any) -> dict[str, Any]:
        raise BadInput("package 'x' is missing; fix: pip install x")

    monkeypatch.setattr(Keeping, "external", missing)
    with pytest.raises(BadInput, match="pip install x"):
        key()


def test_images_from_elsewhere_are_of_the_right_size_and_part_of_the_key() -> None:
    class Learned(Defense):
        needs = ("external_model",)
        wants_public = True

    register("defense", "learned")(Learned)
    default = prepare("none", ("learned",), only=True)
    assert default.study.public_dataset.train.images.shape[1:] == default.study.dataset.train.images.shape[1:]
    changed = prepare("none", ("learned",), ("public_dataset.train_per_class=11",), only=True)
    keys = {
        identities(plan.study).record(plan.cells[0].attack, plan.cells[0].defense, 0)["key"]
        for plan in (default, changed)
    }
    assert len(keys) == 2
    with pytest.raises(BadInput, match="public_dataset 'photographs' has images of 24 pixels"):
        prepare("none", ("learned",), ("public_dataset.size=24",), only=True)

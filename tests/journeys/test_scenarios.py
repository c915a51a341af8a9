"""Scenarios of a study, from protocol to record: transfer, finetune, subsets, other architectures, triggers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.execution import runner
from bench.execution.engines.local import Local
from bench.execution.plan import Plan
from bench.foundation.errors import BadInput
from bench.foundation.registry import register
from bench.science import networks
from bench.science.classifier import Classifier
from bench.science.crafting import poisons_of
from bench.science.defense import Defense, Services
from bench.science.training import Trained
from bench.science.workspace import Workspace
from bench.storage.record import Record
from bench.storage.records import comparable
from bench.storage.store import Store
from tests import plans
from tests.tiny import SETS

TRANSFER = [
    *("train.epochs=2", "train.batch=32", "pretrain.epochs=1", "threat.budget=0.05", "trials=1"),
    *("dataset.train_per_class=10", "dataset.test_per_class=5"),
    *("pretrain_dataset.train_per_class=12", "pretrain_dataset.test_per_class=2"),
]
FAST = ["attack.steps=2"]
victims: list[Classifier] = []
starts: list[dict[str, Tensor]] = []


@register("defense", "test-look")
class Looking(Defense):
    """No defense, for tests: keeps how the victim starts and what it becomes."""

    def setup(self, run: Any) -> None:
        starts.append({name: value.clone() for name, value in run.model.state_dict().items()})

    def finish(self, trained: Sequence[Trained], services: Services) -> Any:
        victims.append(trained[0].model)
        return super().finish(trained, services)


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    victims.clear()
    starts.clear()


def prepare(attack: str = "pf", sets: Sequence[str] = (), preset: str = "quick-transfer", **options: Any) -> Plan:
    own = FAST if attack not in ("none", "none-trigger") else []
    base = TRANSFER if preset == "quick-transfer" else [*SETS, "trials=1", "threat.surrogates=1"]
    options = {"defenses": ("test-look",), "only": True, **options}
    return plans.prepare(preset, [*base, *own, *sets], attack=attack, **options)


def execute(plan: Plan, out: Path) -> list[Record]:
    said: list[str] = []
    results = runner.execute(plan, out, Local(1, 1, quiet=True), said.append, lambda record: None)
    assert [record["error"] for record in results] == [None] * len(results)
    return results


def space_of(plan: Plan, out: Path) -> Workspace:
    return Workspace.at(plan.study, out, lambda *_: None, print)


def features_of(model: Classifier | dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights and buffers of normalisation and body."""
    state = model if isinstance(model, dict) else model.state_dict()
    return {name: value for name, value in state.items() if not name.startswith("head.")}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


# Transfer and finetune.


def test_in_transfer_only_the_head_of_the_victim_is_trained(tmp_path: Path) -> None:
    plan = prepare()
    (record,) = execute(plan, tmp_path)
    pretrained, _ = space_of(plan, tmp_path).networks.pretrained("convnet")
    (victim,), (start,) = victims, starts
    assert any(name.endswith("running_var") for name in features_of(victim))
    assert same(features_of(victim), features_of(pretrained))
    assert same(features_of(start), features_of(pretrained))
    assert not torch.equal(victim.head.weight, start["head.weight"])
    assert not torch.equal(start["head.weight"], pretrained.head.weight)
    assert not victim.training
    assert record["poisons"]["n"] == 5 and 0 < record["poisons"]["max_change"] <= 16


def test_in_finetune_the_whole_victim_is_trained_from_the_pretrained_features(tmp_path: Path) -> None:
    plan = prepare(sets=("threat.scenario=finetune",))
    execute(plan, tmp_path)
    pretrained, _ = space_of(plan, tmp_path).networks.pretrained("convnet")
    (victim,), (start,) = victims, starts
    assert same(features_of(start), features_of(pretrained))
    assert not torch.equal(start["head.weight"], pretrained.head.weight)
    for name, value in features_of(victim).items():
        if name.startswith("body.") and value.is_floating_point():
            assert not torch.equal(value, pretrained.state_dict()[name]), name


def test_from_scratch_there_is_no_pretrained_network(tmp_path: Path) -> None:
    execute(prepare(preset="quick"), tmp_path)
    kinds = [artefact["kind"] for artefact in identities(tmp_path)]
    assert kinds == ["surrogate"]


def identities(out: Path) -> list[dict[str, Any]]:
    store = Store(out / "store")
    keys = sorted(path.stem for path in (out / "store" / "networks").rglob("*.safetensors"))
    found = [store.get("networks", key) for key in keys]
    return [artefact.meta["identity"] for artefact in found if artefact is not None]


@pytest.mark.parametrize("scenario", ["transfer", "finetune"])
def test_victims_behind_a_defense_and_the_control_start_alike(tmp_path: Path, scenario: str) -> None:
    plan = prepare(sets=(f"threat.scenario={scenario}",), defenses=("test-look", "noise-b"), only=False)
    execute(plan, tmp_path)
    execute(prepare("none", sets=(f"threat.scenario={scenario}",)), tmp_path)
    assert len(starts) == 2 and same(starts[0], starts[1])


def test_the_pretraining_sees_its_own_data_and_recipe(tmp_path: Path) -> None:
    plan = prepare()
    execute(plan, tmp_path)
    (identity,) = [one for one in identities(tmp_path) if one["kind"] == "pretrained"]
    assert identity["data"] == plan.study.pretrain_dataset.fingerprint != plan.study.dataset.fingerprint
    assert identity["recipe"]["epochs"] == 1
    assert plan.study.normalisation == plan.study.pretrain_dataset.normalisation


# The attacker's networks.


def test_the_white_box_surrogate_has_the_victims_features(tmp_path: Path) -> None:
    plan = prepare()
    execute(plan, tmp_path)
    surrogate, _ = space_of(plan, tmp_path).networks.surrogate(0)
    assert same(features_of(surrogate), features_of(victims[0]))
    assert not torch.equal(surrogate.head.weight, victims[0].head.weight)


def test_a_second_white_box_surrogate_has_another_pretraining(tmp_path: Path) -> None:
    plan = prepare(sets=("threat.surrogates=2",))
    execute(plan, tmp_path)
    networks = space_of(plan, tmp_path).networks
    first, second = (features_of(networks.surrogate(k)[0]) for k in range(2))
    assert same(first, features_of(victims[0]))
    assert not same(first, second)


def test_a_black_box_surrogate_is_another_pretrained_network(tmp_path: Path) -> None:
    plan = prepare(sets=("threat.surrogate=lenet",))
    (record,) = execute(plan, tmp_path)
    networks = space_of(plan, tmp_path).networks
    surrogate, artefact = networks.surrogate(0)
    assert artefact.reused and artefact.meta["identity"]["start"]["model"] == "lenet"
    pretrained, kept = networks.pretrained("lenet")
    assert kept.reused
    assert same(features_of(surrogate), features_of(pretrained))
    assert list(features_of(surrogate)) != list(features_of(victims[0]))
    assert same(features_of(victims[0]), features_of(networks.pretrained("convnet")[0]))


def test_architectures_are_taken_in_turn_and_each_network_is_another(tmp_path: Path) -> None:
    plan = prepare(sets=("threat.surrogate=convnet,lenet", "threat.surrogates=3"))
    execute(plan, tmp_path)
    networks = space_of(plan, tmp_path).networks
    assert [plan.study.protocol.surrogate_model(k) for k in range(3)] == [("convnet", 0), ("lenet", 0), ("convnet", 1)]
    found = [networks.surrogate(k) for k in range(3)]
    assert all(artefact.reused for _, artefact in found)
    first, other, second = (features_of(network) for network, _ in found)
    assert list(first) == list(second) != list(other)
    assert not torch.equal(first["body.0.weight"], second["body.0.weight"])
    assert same(second, features_of(networks.pretrained("convnet", 1)[0]))


def test_architectures_in_turn_from_scratch(tmp_path: Path) -> None:
    plan = prepare(preset="quick", sets=("threat.surrogate=lenet, convnet", "threat.surrogates=3"))
    assert [plan.study.protocol.surrogate_model(k)[0] for k in range(3)] == ["lenet", "convnet", "lenet"]
    execute(plan, tmp_path)
    networks = space_of(plan, tmp_path).networks
    first, _, third = (features_of(networks.surrogate(k)[0]) for k in range(3))
    assert list(first) == list(third) and not torch.equal(first["body.0.weight"], third["body.0.weight"])


# Subsets.


def test_a_subset_is_what_victims_are_trained_on(tmp_path: Path) -> None:
    plan = prepare(sets=("threat.per_class=4", "threat.budget=0.1"))
    (record,) = execute(plan, tmp_path)
    data = plan.study.case(0).clean
    assert torch.bincount(data.labels).tolist() == [4] * 10
    assert set(record["draw"]["base_ids"]) <= set(data.ids.tolist())
    assert record["poisons"]["n"] == 4
    assert all(epoch["samples"] == 40 for epoch in record["history"])


# What cannot work.


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (("threat.surrogate=convnet,lenett",), "unknown model 'lenett'; did you mean 'lenet'"),
        (("threat.surrogate=resnet-18",), "unknown model 'resnet-18'"),
        (("threat.surrogate=convnet,",), "unknown model ''"),
        (("threat.surrogate=3",), "threat.surrogate"),
        (("threat.per_class=11",), "threat.per_class 11: the smallest class has only 10"),
        (("threat.per_class=2", "threat.budget=0.5"), "asks for 10 poisons of one class"),
        (("threat.patch=17",), "threat.patch 17: the images have 16 pixels; allowed: at most 16"),
        (("pretrain_dataset.size=8",), "pretrain_dataset 'photographs' has images of 8 pixels"),
        (("pretrain_dataset.name=photo",), "unknown dataset 'photo'"),
        (("pretrain_dataset.sise=8",), "unknown key 'pretrain_dataset.sise'"),
        (("pretrain.epochs=0",), "pretrain.epochs"),
        (("threat.scenario=transfers",), "threat.scenario"),
        (("threat.placement=middle",), "threat.placement"),
        (("dataset.size=8", "pretrain_dataset.size=8", "threat.surrogate=lenet"), "model 'lenet' needs images of"),
    ],
)
def test_what_cannot_work_is_said_in_one_line_before_any_work(sets: tuple[str, ...], expected: str) -> None:
    with pytest.raises(BadInput, match=expected) as caught:
        prepare(sets=sets)
    assert "\n" not in str(caught.value)


# Triggers.


def test_a_trigger_attack_is_paired_with_its_own_control() -> None:
    def cells(attack: str) -> list[tuple[str, str]]:
        plan = prepare(attack, preset="quick", only=False, defenses=("noise-b",))
        return [(cell.attack.label, cell.defense.label) for cell in plan.cells]

    assert cells("sleeper") == [("none-trigger", "none"), ("sleeper", "none"), ("sleeper", "noise-b")]
    assert cells("none-trigger") == [("none-trigger", "none"), ("none-trigger", "noise-b")]
    assert cells("gm")[0] == ("none", "none")


SLEEPER = ["attack.steps=4", "attack.retrain=1", "attack.augment=false"]


@pytest.fixture(scope="module")
def slept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record]]:
    """A finished study of sleeper: the control and the undefended cell, two trials."""
    out = tmp_path_factory.mktemp("slept")
    return out, execute(sleeping(), out)


def sleeping() -> Plan:
    return prepare("sleeper", (*SLEEPER, "trials=2"), preset="quick", only=False, defenses=("none",))


def test_control_and_attack_show_the_same_images(slept: tuple[Path, list[Record]]) -> None:
    plan, space = sleeping(), space_of(sleeping(), slept[0])
    control, attack = (cell.attack for cell in plan.cells)
    for index in (0, 1):
        one, other = (poisons_of(space, space.study.case(index), of)[0] for of in (control, attack))
        assert len(one.ids) == 0 and len(other.ids) == 5
        assert one.shown is not None and other.shown is not None
        for name in ("images", "ids", "patch", "places"):
            assert torch.equal(getattr(one.shown, name), getattr(other.shown, name)), name
        study, shown = plan.study, other.shown
        test, trial = study.dataset.test, study.case(index).trial
        assert shown.ids.tolist() == test.ids[test.labels == trial.source_class].tolist()
        trigger = study.protocol.threat.trigger(16)
        assert shown.places is not None
        assert torch.equal(shown.images, trigger.paste(test.images[test.rows_of(shown.ids)], shown.places))
    first, second = (poisons_of(space, space.study.case(index), attack)[0].shown for index in (0, 1))
    assert first is not None and second is not None and not torch.equal(first.places, second.places)  # type: ignore[arg-type]


def test_the_record_of_a_backdoor_has_three_rates_and_the_parts_of_its_time(
    slept: tuple[Path, list[Record]],
) -> None:
    for record in slept[1]:
        rates = record["outcome"]["backdoor"]  # type: ignore[index]
        assert {"asr_all", "asr_excluding", "asr_conditional", "base_rate", "n", "n_conditional"} == set(rates)
        assert rates["n"] == 5 and record["success"] == rates["asr_all"]
        assert all(0 <= rates[name] <= 1 for name in ("asr_all", "asr_excluding", "asr_conditional", "base_rate"))
    for record in slept[1][:2]:
        assert record["poisons"]["n"] == 0
        assert not any(name.startswith("craft.") for name in record["seconds"])
    classes: list[int] = []
    for record in slept[1][2:]:
        seconds = record["seconds"]
        parts = [seconds[f"craft.{name}"] for name in ("selection", "gradients", "retraining")]
        assert all(part > 0 for part in parts) and sum(parts) <= seconds["craft"] + seconds["surrogates"]
        artefact = Store(slept[0] / "store").get("poisons", record["poisons"]["key"])
        assert artefact is not None
        assert artefact.meta["kept_reused"] == {"base_selection": record["draw"]["target_class"] in classes}
        assert record["reused"]["base_selection"] == (record["draw"]["target_class"] in classes)
        classes.append(record["draw"]["target_class"])
        assert record["poisons"]["retrained_at"] == [2] and record["poisons"]["max_change"] <= 10
        assert record["surrogates"]["kept"] == ["base_selection"]


def test_poisons_that_are_lost_come_out_equal_without_another_training(
    slept: tuple[Path, list[Record]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(slept[0], tmp_path / "out")
    shutil.rmtree(out / "records")
    shutil.rmtree(out / "store" / "poisons")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a network was trained again")

    monkeypatch.setattr(networks, "train", never)  # the module: which function trains is handed to nobody
    again = execute(sleeping(), out)
    assert [comparable(record) for record in again] == [comparable(record) for record in slept[1]]
    assert all(record["reused"]["base_selection"] for record in again[2:])
    for record in again[2:]:
        old = Store(slept[0] / "store").get("poisons", record["poisons"]["key"])
        new = Store(out / "store").get("poisons", record["poisons"]["key"])
        assert old is not None and new is not None
        assert set(old.tensors) == set(new.tensors)
        assert all(torch.equal(old.tensors[name], new.tensors[name]) for name in old.tensors)


def test_a_selection_that_is_lost_is_made_again(slept: tuple[Path, list[Record]], tmp_path: Path) -> None:
    out = shutil.copytree(slept[0], tmp_path / "out")
    for folder in ("records", "store/poisons", "store/kept"):
        shutil.rmtree(out / folder)
    again = execute(sleeping(), out)
    assert [comparable(record) for record in again] == [comparable(record) for record in slept[1]]


@pytest.mark.parametrize("name", ["noise", "friends"])
def test_the_adaptive_attacks_run_with_the_real_defense(
    slept: tuple[Path, list[Record]], tmp_path: Path, name: str
) -> None:
    out = shutil.copytree(slept[0], tmp_path / "out")
    sets = ("attack.steps=2", "attack.retrain=1", "attack.in_surrogates=true", "attack.in_sources=true", "trials=1")
    plan = prepare(f"sleeper-adaptive-{name}", sets, preset="quick", defenses=("friends-b",))
    # The plain sleeper that friendly noise is made for is the published one: here it is cut down by the protocol.
    plan.study.protocol.attack_settings["sleeper"] = {"steps": 2, "retrain": 0}
    (record,) = execute(plan, out)
    assert record["poisons"]["adapted_to"] == f"{name}-b"  # type: ignore[typeddict-item]
    assert record["seconds"]["craft.friendly noise"] >= 0
    assert ("craft.earlier poisons" in record["seconds"]) == (name == "friends")
    assert record["outcome"]["backdoor"]["n"] == 5  # type: ignore[index]


def test_metapoison_takes_the_snapshots_of_the_surrogates(tmp_path: Path) -> None:
    plan = prepare("metapoison", ("attack.ages=[1,2]", "attack.clean=8", "threat.surrogates=2"), preset="quick")
    (record,) = execute(plan, tmp_path)
    assert record["poisons"]["n"] == 5 and len(record["poisons"]["losses"][0]) == 2
    kinds = [one["kind"] for one in identities(tmp_path)]
    assert kinds == ["snapshots"] * 2
    networks = space_of(plan, tmp_path).networks
    early, late = networks.snapshots(0, (1, 2))[0]
    assert not torch.equal(early.head.weight, late.head.weight)
    assert same(late.state_dict(), networks.surrogate(0)[0].state_dict())


def test_an_age_beyond_the_training_is_refused_in_one_line() -> None:
    with pytest.raises(BadInput, match="ages") as caught:
        prepare("metapoison", ("attack.ages=[1,3]",), preset="quick")
    assert "\n" not in str(caught.value)

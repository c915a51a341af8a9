"""Protocols: precedence, bounds, and errors in one line that name the fix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.foundation.errors import BadInput
from bench.foundation.registry import find
from bench.request.protocol_file import protocol_names, resolve
from bench.science.selection import select_attacks, select_defenses

SELECT = {"attack": select_attacks, "defense": select_defenses}


@pytest.mark.parametrize("name", protocol_names())
def test_every_preset_resolves(name: str) -> None:
    protocol, rest = resolve(name, [])
    assert protocol.name == name and protocol.description and rest == []
    for kind, sections in (("attack", protocol.attack_settings), ("defense", protocol.defense_settings)):
        for plugin, values in sections.items():
            (chosen,) = SELECT[kind]([plugin], protocol, rest)  # type: ignore[misc]
            assert {key: chosen.settings.as_dict()[key] for key in values} == values  # type: ignore[has-type]


def test_friends_table_1_is_what_the_paper_says() -> None:
    protocol, _ = resolve("cifar10-scratch", [])
    recipe, threat = protocol.train, protocol.threat
    assert protocol.model == "resnet18" and protocol.dataset.name == "cifar10"
    assert (recipe.epochs, recipe.batch, recipe.lr, recipe.momentum, recipe.nesterov) == (80, 128, 0.1, 0.9, True)
    assert (recipe.weight_decay, recipe.drops, recipe.flip) == (5e-4, (30, 50, 70), True)
    assert (threat.eps, threat.budget, threat.surrogates) == (16, 0.01, 1)
    (gm,) = select_attacks(["gm"], protocol)
    assert {name: gm.settings.as_dict()[name] for name in ("steps", "restarts", "lr")} == {
        "steps": 250,
        "restarts": 8,
        "lr": 0.1,
    }
    (friends,) = select_defenses(["friends-b"], protocol)
    published = {"noise": "bernoulli", "mu": 16, "zeta": 16, "start": 5, "steps": 20}
    assert {name: friends.settings.as_dict()[name] for name in published} == published


def test_the_replication_is_what_its_source_ran() -> None:
    protocol, _ = resolve("replication-dog-bird", [])
    victim, attacker, threat = protocol.train, protocol.surrogate, protocol.threat
    assert protocol.model == "resnet20" and protocol.victims == 4
    assert (victim.epochs, victim.batch, victim.drops) == (50, 125, (40,))
    assert (attacker.epochs, attacker.batch, attacker.drops) == (60, 128, (35, 45))
    for recipe in (victim, attacker):
        assert (recipe.lr, recipe.momentum, recipe.nesterov, recipe.weight_decay) == (0.1, 0.9, False, 0)
        assert (recipe.schedule, recipe.augment, recipe.flip) == ("step", "none", False)
    assert (threat.pair, threat.eligible) == ("bird,dog", "correct")
    assert (threat.eps, threat.budget, threat.surrogates) == (8, 0.02, 5)
    (gm,) = select_attacks(["gm"], protocol)
    assert {"steps": 250, "restarts": 8, "rule": "sign-adam", "decay": False}.items() <= gm.settings.as_dict().items()
    mean_deviation = sum((0.2470, 0.2435, 0.2616)) / 3  # of CIFAR-10's channels
    assert gm.settings.as_dict()["lr"] * mean_deviation == pytest.approx(1 / 255, rel=0.01)
    friends, epic = _written("friends-b", protocol.name), _written("epic-0.1", protocol.name)
    assert {"mu": 8, "zeta": 16, "start": 5, "steps": 30, "lr": 100, "lambda_": 1}.items() <= friends.items()
    assert {"fraction": 0.1, "every": 2, "start": 10, "stop": 40}.items() <= epic.items()


def test_precedence_is_default_variant_protocol_set(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\nmodel = "convnet"\n[defense.friends-b]\nmu = 5\nsteps = 7\n')
    protocol, rest = resolve(str(file), ["defense.steps=9", "threat.eps=8"])
    (chosen,) = select_defenses(["friends-b"], protocol, rest)
    values = chosen.settings.as_dict()
    assert (values["noise"], values["mu"], values["steps"], values["zeta"]) == ("bernoulli", 5, 9, 16)
    assert protocol.threat.eps == 8


@pytest.mark.parametrize("name", ["quick-transfer", "benchmark-transfer", "cifar10-transfer"])
@pytest.mark.parametrize("defense", ["friends-u", "friends-b", "friends-g", "friendly", "spectral+friends-b"])
def test_in_transfer_friendly_noise_is_made_at_the_beginning(name: str, defense: str) -> None:
    assert _written(defense, name)["start"] == 0
    assert _written(defense, name, ["defense.start=3"])["start"] == 3
    assert _written(defense, name, ["threat.scenario=finetune"])["start"] == 5


def test_epic_has_the_schedules_of_its_papers() -> None:
    names = ("every", "start", "stop")
    expected = {"cifar10-scratch": (1, 5, 0), "cifar10-scratch-40": (2, 5, 0), "cifar10-transfer": (1, 1, 10)}
    for name, schedule in expected.items():
        for defense in ("epic-0.1", "epic-0.2", "epic-0.3"):
            assert tuple(_written(defense, name)[each] for each in names) == schedule


def test_a_protocol_file_counts_more_than_the_scenario(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('model = "convnet"\n[threat]\nscenario = "transfer"\n[defense.friends-b]\nstart = 2\n')
    assert _written("friends-b", str(file))["start"] == 2
    assert _written("friends-u", str(file))["start"] == 0


def _written(defense: str, protocol: str, sets: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of a defense, or of the last part of a composition, as records have them."""
    (chosen,) = select_defenses([defense], *resolve(protocol, sets))
    values = chosen.values()
    return values[chosen.parts[-1].label] if chosen.parts else values


def test_a_setting_can_be_meant_for_one_defense() -> None:
    protocol, rest = resolve("quick", ["defense.friends-b.mu=4"])
    first, second = select_defenses(["friends-b", "friends-u"], protocol, rest)
    assert (first.settings.as_dict()["mu"], second.settings.as_dict()["mu"]) == (4, 16)


def test_the_surrogate_recipe_is_the_victims_unless_said() -> None:
    protocol, _ = resolve("quick", ["train.epochs=7"])
    assert protocol.surrogate == protocol.train
    protocol, _ = resolve("quick", ["surrogate.epochs=3"])
    assert protocol.surrogate.epochs == 3 and protocol.train.epochs != 3


def test_another_data_set_keeps_the_settings_that_it_knows() -> None:
    protocol, _ = resolve("cifar10-mini", [], dataset="folder:/somewhere")
    assert str(protocol.dataset) == "folder:/somewhere"
    assert protocol.dataset.settings.as_dict() == {"train_per_class": 500, "train_skip": 0, "test_per_class": 100}


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (["threat.eps=-1"], "bad value for 'threat.eps': -1; allowed: whole number, at least 1, at most 255"),
        (["threat.eps=1.5"], "'threat.eps'"),
        (["threat.eps=true"], "'threat.eps'"),
        (["threat.budget=2"], "bad value for 'threat.budget': 2; allowed: number, more than 0, at most 1"),
        (["trials=0"], "bad value for 'trials': 0; allowed: whole number, at least 1, at most 100000"),
        (["train.epoch=3"], "unknown key 'train.epoch'; did you mean 'epochs'?"),
        (["trian.epochs=3"], "did you mean 'train.'?"),
        (["threat.eps"], "write key=value"),
        (["model=resnet-18"], "unknown model 'resnet-18'; did you mean 'resnet18'?"),
        (["train.schedule=steps"], "one of step, one-cycle"),
        (["train.drops=[5, 3]"], "rising epochs"),
        (["train.momentum=0"], "nesterov"),
        (["dataset.sizes=3"], "did you mean 'size'?"),
        (["threat.surrogate=resnet"], "unknown model"),
    ],
)
def test_bad_settings_stop_with_one_line(sets: list[str], expected: str) -> None:
    with pytest.raises(BadInput) as caught:
        resolve("quick", sets)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "names", "sets", "expected"),
    [
        ("attack", ["gn"], [], "unknown attack 'gn'; did you mean 'gm'?"),
        ("defense", ["friends"], [], "unknown defense 'friends'; did you mean 'friends-"),
        ("attack", ["gm"], ["attack.step=3"], "unknown key 'attack.step'; did you mean 'steps'?"),
        ("defense", ["friends-b"], ["defense.mu=0"], "bad value for 'defense.mu': 0"),
        ("defense", ["friends-b"], ["defense.friend-b.mu=3"], "did you mean 'friends-b'?"),
        ("defense", ["friends-b"], ["defense.source_model=lnet"], "did you mean 'lenet'?"),
        ("defense", ["none"], ["defense.mu=3"], "unknown key 'defense.mu'"),
    ],
)
def test_bad_plugins_stop_with_one_line(kind: str, names: list[str], sets: list[str], expected: str) -> None:
    protocol, rest = resolve("quick", sets)
    with pytest.raises(BadInput) as caught:
        SELECT[kind](names, protocol, rest)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[defense.friend-b]\nmu = 4", "[defense.friend-b]: unknown defense 'friend-b'; did you mean 'friends-b'?"),
        ("[attack]\nsteps = 7", "unknown key 'attack.steps'; write it under a plug-in, as in [attack.NAME]"),
        ("[attack.gm]\nstep = 7", "[attack.gm]: unknown key 'attack.gm.step'; did you mean 'steps'?"),
        ("[defense.friends-b]\nmu = 0", "[defense.friends-b]: bad value for 'defense.friends-b.mu': 0"),
        ('dataset = "cifar10"', "bad value for 'dataset': 'cifar10'"),
        ("[[train]]\nepochs = 3", "bad value for 'train'"),
        ('version = "x"', "bad value for 'version': 'x'; allowed: whole number, at least 1"),
    ],
)
def test_what_a_protocol_file_says_of_plugins_and_sections_is_checked(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(BadInput) as caught:
        resolve(str(file), [])
    assert expected in str(caught.value) and "mine.toml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["name = ", 'nam = "x"', "[threats]\neps = 3"])
def test_a_bad_protocol_file_stops_with_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(BadInput, match="protocol"):
        resolve(str(file), [])


def test_an_unknown_protocol_offers_the_nearest() -> None:
    with pytest.raises(BadInput, match="did you mean 'quick'"):
        resolve("quik", [])


@pytest.mark.parametrize(
    ("by_scenario", "complaint"),
    [
        ({"tranfer": {"mu": 8}}, "unknown scenario 'tranfer'; did you mean 'transfer'?"),
        ({"finetune": {"mux": 8}}, "unknown key 'finetune.mux'; did you mean 'mu'?"),
        ({"finetune": {"mu": -1}}, "bad value for 'finetune.mu'"),
    ],
)
def test_what_a_plugin_mistypes_for_a_scenario_is_told_in_every_scenario(
    by_scenario: dict[str, dict[str, int]], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find("defense", "friends-b").make, "by_scenario", by_scenario)
    protocol, rest = resolve("quick", [])  # from scratch
    with pytest.raises(BadInput, match="^defense 'friends-b', by_scenario: ") as told:
        select_defenses(["none", "epic-0.1+friends-b"], protocol, rest)
    assert complaint in str(told.value)

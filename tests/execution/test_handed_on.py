"""What is resolved, drawn and described once is handed on: counted over a whole run in one process."""

from __future__ import annotations

import cProfile
import pickle
import pstats
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from bench.execution import runner
from bench.execution.engines.local import Local
from bench.execution.plan import Plan
from bench.execution.tasks import VictimTraining, work
from bench.foundation.errors import BadInput, TrialFailed
from bench.foundation.progress import Heartbeat
from bench.storage.poison_images import image_path
from tests.plans import prepare
from tests.tiny import ATTACK_SETS, SETS

Calls = Counter[tuple[str, str]]


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Calls, Calls]:
    """Calls by (file, function) while a plan of gm behind friends-b is made, and while it is carried out: three cells
    with two trials each."""
    calls = []
    out = tmp_path_factory.mktemp("counted")
    plan: list[Plan] = []
    for step in (
        lambda: plan.append(prepare("quick", [*SETS, *ATTACK_SETS, "trials=2"], attack="gm", defenses=["friends-b"])),
        lambda: runner.execute(plan[0], out, Local(1, quiet=True), lambda line: None, lambda record: None),
    ):
        profile = cProfile.Profile()
        profile.runcall(step)
        stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
        calls.append(Counter({(Path(file).name, name): count for (file, _, name), (_, count, *_) in stats.items()}))
    return calls[0], calls[1]


def test_a_trial_is_drawn_once(counted: tuple[Calls, Calls]) -> None:
    planning, execution = counted
    assert planning["threat.py", "draw_trial"] + execution["threat.py", "draw_trial"] == 2


def test_nothing_is_looked_up_in_the_registry_while_trials_run(counted: tuple[Calls, Calls]) -> None:
    planning, execution = counted
    assert planning["registry.py", "find"] > 0
    assert execution["registry.py", "find"] == 0


def test_each_identity_is_made_once(counted: tuple[Calls, Calls]) -> None:
    made = {name: counted[0]["identity.py", name] + counted[1]["identity.py", name] for name in ("cell", "poisons")}
    assert made == {"cell": 3, "poisons": 4}  # of gm and of the control, in two trials
    assert counted[1]["identity.py", "surrogate"] == 2  # of two surrogates
    assert sum(calls["identity.py", "common"] for calls in counted) == 1


def test_tasks_of_one_study_share_it_and_their_plugins_in_another_process(tmp_path: Path) -> None:
    """As a worker gets them: each pickled on its own."""
    plan = prepare("quick", SETS, attack="gm", defenses=["spectral+friends-b[mu=8]"], only=True)
    tasks = [pickle.loads(pickle.dumps(task)) for task in plan.victims(tmp_path).values()]
    first, second = tasks
    assert isinstance(first, VictimTraining) and first.study is second.study
    assert first.attack is second.attack and first.expected_key() == first.key
    assert [part.label for part in first.defense.parts] == ["spectral", "friends-b"]
    assert first.defense.values()["friends-b"]["mu"] == 8


def test_a_worker_with_other_code_data_or_libraries_refuses_the_task(tmp_path: Path) -> None:
    """Its key then comes out otherwise than the sender's."""
    for task in prepare("quick", SETS, attack="random-noise", only=True).victims(tmp_path).values():
        foreign = replace(task, key="0" * 64)
        with pytest.raises(TrialFailed, match="the worker's code, libraries or data are not those of the command"):
            work(foreign, Heartbeat(tmp_path / "beat.json"))
    assert not (tmp_path / "records").exists() and not (tmp_path / "store").exists()


@pytest.mark.parametrize("key", ["", "../../x", "/etc/passwd", "a" * 63, "A" * 64, "none/..", f"{'a' * 64}\n"])
def test_a_record_cannot_name_another_file_as_the_image_of_its_poisons(key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        image_path(Path("out"), key)
    assert image_path(Path("out"), "a" * 64) == Path("out", "images", "a" * 64 + ".png")


def test_a_plugin_file_reaches_a_worker_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from bench.plugin import Defense, Field, Settings, register\n"
        "class MineSettings(Settings):\n    size: int = Field(3, ge=1)\n"
        '@register("defense", "mine-sent")\nclass Mine(Defense):\n    "A defense."\n    Settings = MineSettings\n'
    )
    plan = prepare("quick", SETS, attack="none", defenses=[f"{file}[size=5]"], only=True)
    (task, _) = plan.victims(tmp_path).values()
    sent = pickle.loads(pickle.dumps(task))
    assert (sent.defense.label, sent.defense.values()) == ("mine-sent", {"size": 5})
    assert sent.expected_key() == task.key


def test_two_settings_of_one_defense_are_two_cells() -> None:
    plan = prepare(
        "quick", SETS, attack="none", defenses=["friends-b", "friends-b[mu=8]", "friends-b[mu=16]"], only=True
    )
    assert [cell.defense.values()["mu"] for cell in plan.cells] == [16, 8]  # the third is the first


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("friends-b[mu]", "write 'mu' as setting=value"),
        ("friends-b[mu=8", "write settings as in friends-b[mu=8]"),
        ("[mu=8]", "write settings as in friends-b[mu=8]"),
        ("friends-b[mu=8,mu=9]", "'mu' is given twice"),
        ("friends-b[mu=0]", "bad value for 'defense.mu': 0"),
        ("friends-b[nu=8]", "unknown key 'defense.nu'; did you mean 'mu'?"),
        ("friend-b[mu=8]", "unknown defense 'friend-b'; did you mean 'friends-b'?"),
        ("spectral+friends-b[mu=0]", "bad value for 'defense.mu': 0"),
    ],
)
def test_settings_in_brackets_are_checked(reference: str, expected: str) -> None:
    with pytest.raises(BadInput) as caught:
        prepare("quick", SETS, attack="none", defenses=[reference])
    assert expected in str(caught.value) and "\n" not in str(caught.value)

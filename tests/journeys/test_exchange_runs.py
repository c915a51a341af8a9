"""Poisons that leave through `export` and come back through `import` do to a victim exactly what they did before."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from bench.cli import main
from bench.foundation.registry import names
from tests.plans import prepare
from tests.setups import write_setups
from tests.tiny import ATTACK_SETS, SETS

STUDY = [argument for item in SETS for argument in ("--set", item)]
CRAFT = [argument for item in ATTACK_SETS for argument in ("--set", item)]
HERE = ["--jobs", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output folder for all tests, so that the poisons are crafted once."""
    return tmp_path_factory.mktemp("out")


def run(capsys: Any, out: Path, *arguments: str) -> list[dict]:
    capsys.readouterr()
    code = main(["run", *arguments, *STUDY, *HERE, "--out", str(out), "--tracking", "none", "--json", "--only"])
    assert code == 0
    return json.loads(capsys.readouterr().out)


def there_and_back(out: Path, folder: Path, attack: str, name: str, *extra: str) -> Path:
    export = ["export", str(folder / "theirs"), "--attack", attack, "--format", name, "--trials", "2", *extra]
    crafting = CRAFT if attack == "gm" else []
    assert main([*export, *STUDY, *crafting, *HERE, "--out", str(out)]) == 0
    assert main(["import", str(folder / "theirs"), str(folder / "ours"), *extra, *STUDY]) == 0
    return folder / "ours"


@pytest.mark.slow
@pytest.mark.parametrize("name", names("format"))
def test_a_targeted_attack_succeeds_as_it_did(
    name: str, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run(capsys, out, "--attack", "gm", "--trials", "2", *CRAFT)
    after = run(capsys, out, "--poisons", str(there_and_back(out, tmp_path, "gm", name)))
    assert [record["outcome"] for record in after] == [record["outcome"] for record in before]
    assert [record["history"] for record in after] == [record["history"] for record in before]
    assert [record["poisons"]["max_change"] for record in after] == [r["poisons"]["max_change"] for r in before]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["native", "friendly-noise", "metapoison", "packed", "numpy"])
def test_a_backdoor_succeeds_as_it_did(
    name: str, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run(capsys, out, "--attack", "random-noise-trigger", "--trials", "2")
    export = ["export", str(tmp_path / "t"), "--attack", "random-noise-trigger", "--format", name, "--trials", "2"]
    assert main([*export, *STUDY, *HERE, "--out", str(out)]) == 0
    lacking = ["--trigger"] if name in ("packed", "numpy") else []
    assert ("holds no trigger" in capsys.readouterr().out) == bool(lacking)
    assert main(["import", str(tmp_path / "t"), str(tmp_path / "o"), *STUDY, *lacking]) == 0
    after = run(capsys, out, "--poisons", str(tmp_path / "o"))
    assert [record["success"] for record in after] == [record["success"] for record in before]
    for one, other in zip(after, before, strict=True):
        assert one["outcome"]["target_predictions"] == other["outcome"]["target_predictions"]
        if name not in ("friendly-noise", "metapoison"):  # these do not say which test images they are made from
            assert one["outcome"]["backdoor"] == other["outcome"]["backdoor"]


def test_the_benchmark_format_keeps_the_first_of_the_images_with_a_trigger(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run(capsys, out, "--attack", "random-noise-trigger", "--trials", "2")
    export = ["export", str(tmp_path / "t"), "--attack", "random-noise-trigger", "--format", "benchmark"]
    assert main([*export, "--trials", "2", *STUDY, *HERE, "--out", str(out)]) == 0
    assert "the first of" in capsys.readouterr().out
    assert main(["import", str(tmp_path / "t"), str(tmp_path / "o"), *STUDY]) == 0
    after = run(capsys, out, "--poisons", str(tmp_path / "o"))
    for one, other in zip(after, before, strict=True):
        assert one["outcome"]["target_predictions"] == other["outcome"]["target_predictions"][:1]


def test_imported_poisons_go_behind_any_defense_and_beside_the_control(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = there_and_back(out, tmp_path, "gm", "packed")
    command = ["run", "--poisons", str(ours), "--defense", "noise-b", *STUDY, *HERE, "--out", str(out)]
    assert main([*command, "--tracking", "none", "--json"]) == 0
    records = json.loads(capsys.readouterr().out.splitlines()[-1])
    cells = {(record["attack"], record["defense"]) for record in records}
    assert cells == {("none", "none"), ("imported-ours", "none"), ("imported-ours", "noise-b")}
    assert len({tuple(record["draw"]["target_ids"]) for record in records if record["trial"] == 0}) == 1
    assert str(tmp_path) not in json.dumps([r["settings"] for r in records])


def test_listed_trials_are_run_as_listed(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = prepare("quick", SETS, attack="none", defenses=["none"], only=True).study
    trials = [study.case(index).trial for index in (7, 3, 11)]
    write_setups(tmp_path / "setups.pickle", trials)
    listed = run(capsys, out, "--attack", "none", "--setups", str(tmp_path / "setups.pickle"), "--setup", "1..2")
    assert [record["trial"] for record in listed] == [1, 2]
    for record, trial in zip(listed, trials[1:], strict=True):
        assert record["draw"] == {**trial.as_dict(), "index": record["trial"]}
    drawn = run(capsys, out, "--attack", "none", "--trials", "3")
    assert not {record["key"] for record in listed} & {record["key"] for record in drawn}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--setup", "3"], "give --setups"),
        (["--attack", "imported"], "--poisons DIR"),
        (["--setups", "missing.pickle"], "is not there"),
        (["--setups", "SETUPS", "--setup", "0..7"], "has the trials 0 to 0"),
        (["--setups", "SETUPS", "--setup", "x"], "write one number"),
        (["--setups", "SETUPS", "--setup", "2..1"], "has the trials"),
        (["--poisons", "EMPTY"], "holds no imported poisons"),
        (["--poisons", "SETUPS", "--setups", "SETUPS"], "brings its own trials"),
    ],
)
def test_what_is_no_list_of_trials_is_one_line(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = prepare("quick", SETS, attack="none", defenses=["none"], only=True).study
    write_setups(tmp_path / "setups.pickle", [study.case(0).trial])
    (tmp_path / "empty").mkdir()
    places = {"SETUPS": str(tmp_path / "setups.pickle"), "EMPTY": str(tmp_path / "empty")}
    given = [places.get(argument, argument) for argument in arguments]
    assert main(["run", "--attack", "none", *given, *STUDY, *HERE, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip()
    assert says in said and "\n" not in said
    assert not (tmp_path / "out").exists()


def test_a_wrong_import_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "theirs"
    source.mkdir()
    for name in ("poisons", "base_indices", "target"):
        (source / f"{name}.pickle").write_bytes(pickle.dumps(print))
    assert main(["import", str(source), str(tmp_path / "ours"), *STUDY]) == 2
    assert "builtins.print" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_poisons_beyond_eps_are_refused_before_anything_is_run(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = there_and_back(out, tmp_path, "random-noise", "benchmark")
    command = ["run", "--poisons", str(ours), *STUDY, "--set", "threat.eps=4", *HERE, "--out", str(tmp_path / "o")]
    assert main([*command, "--tracking", "none"]) == 2
    assert "fix: --set threat.eps=10" in capsys.readouterr().err


def test_export_refuses_a_folder_that_is_there_and_an_unknown_format(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    common = [*STUDY, *HERE, "--out", str(out), "--attack", "random-noise"]
    assert main(["export", str(tmp_path / "there"), *common]) == 2
    assert "exists; fix: give a new folder" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "new"), "--format", "benchmrk", *common]) == 2
    assert "benchmark" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "new"), *STUDY, "--attack", "none"]) == 2
    assert "nothing to export" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there"]

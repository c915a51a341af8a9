"""`bench new`: what it makes works at once; what it refuses leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.authoring.contract import check
from bench.cli import main
from bench.foundation.registry import find


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "setting"), [("attack", "strength"), ("defense", "levels")])
def test_what_it_makes_passes_check_and_its_own_test(
    kind: str, setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", kind, "grey_world", "--dir", str(tmp_path / "mine")]) == 0
    said = capsys.readouterr().out
    plugin, test = tmp_path / "mine" / "grey_world.py", tmp_path / "mine" / "test_grey_world.py"
    for step in (f"bench check {plugin}", f"pytest {test}", f"--{kind} {plugin}", "CONTRIBUTING.md"):
        assert step in said
    results = check(str(plugin))
    assert len(results) >= 8 and all(result.passed for result in results), results
    found = find(kind, str(plugin))
    assert found.name == "grey-world" and found.make.__name__ == f"GreyWorld{kind.capitalize()}"
    assert setting in found.make.Settings.model_fields
    for text in (plugin.read_text(), test.read_text()):
        assert "my_" not in text and "my-" not in text
    own = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test.name]
    ran = subprocess.run(own, cwd=test.parent, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0 and "2 passed" in ran.stdout, ran.stdout


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("1st", "allowed: lower-case letters"),
        ("My_Defense", "allowed: lower-case letters"),
        ("my-defense", "allowed: lower-case letters"),
        ("../escape", "allowed: lower-case letters"),
        ("class", "allowed: lower-case letters"),
        ("", "allowed: lower-case letters"),
        ("friends_b", "the name 'friends-b' is taken"),
        ("gm", "the name 'gm' is taken"),
        ("torch", "torch.py would hide"),
    ],
)
def test_a_bad_name_is_one_line_and_writes_nothing(
    name: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "defense", name, "--dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert reason in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("existing", ["blur.py", "test_blur.py"])
def test_an_existing_file_is_left_alone(existing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / existing).write_text("mine")
    assert main(["new", "attack", "blur", "--dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "file exists" in error and f"{existing}'" in error
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(existing, "mine")]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["new", "defense", "blur", "--dir", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err

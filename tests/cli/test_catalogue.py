"""`list` and `--help`: complete, within 100 columns, and quick."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from bench.cli.main import COMPLETION, main
from bench.foundation import registry
from bench.request import protocol_file, sweep_file
from tests.aftermath import ROOT


def listed(capsys: pytest.CaptureFixture[str], *kind: str) -> str:
    capsys.readouterr()
    assert main(["list", *kind]) == 0
    return capsys.readouterr().out


def names_in(text: str) -> set[str]:
    """The names that stand in the column of names, with or without their settings."""
    heads = [line for line in text.splitlines() if re.match(r"  \S", line)]
    return {re.split(r" \(", part)[0] for line in heads for part in re.split(r"  +", line)[1:] if part}


def test_list_fits_100_columns_and_says_what_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    text = listed(capsys)
    assert max(map(len, text.splitlines())) <= 100
    headings = [line for line in text.splitlines() if not line.startswith(" ")]
    kinds = "attacks defenses datasets models protocols sweeps engines figures formats"
    assert headings == [f"{kind}:" for kind in kinds.split()]


@pytest.mark.parametrize("kind", ["attack", "defense", "dataset", "model", "engine"])
def test_every_plugin_that_can_be_run_is_listed(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    runnable = {name for name in registry.names(kind) if name != "imported"}
    assert runnable <= names_in(listed(capsys, f"{kind}s"))


def test_protocols_and_sweeps_are_listed_with_their_whole_description(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, described in (
        ("protocols", {n: protocol_file.read_preset(n)[0]["description"] for n in protocol_file.protocol_names()}),
        ("sweeps", {name: sweep_file.read(name)[1] for name in sweep_file.names()}),
    ):
        text = " ".join(listed(capsys, kind).split())
        for name, description in described.items():
            assert f"{name} {description}" in text


def test_variants_of_a_method_share_one_card_that_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    text = listed(capsys, "defenses")
    assert "  epic-0.1 (fraction = 0.1)  epic-0.2 (fraction = 0.2)  epic-0.3 (fraction = 0.3)\n" in text
    flowing = " ".join(text.split())
    assert flowing.count("effective poisons are isolated in gradient space") == 1
    assert 'as a Certified Defense against Clean-Label Poisoning")' in flowing, "a card with dots in a title"


def test_what_each_assumes_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    defenses, attacks = (" ".join(listed(capsys, kind).split()) for kind in ("defenses", "attacks"))
    assert re.search(r"  ?spectral .*?Assumes: the poison rate\.", defenses)
    assert re.search(r"strip .*?Assumes: a clean hold-out\.", defenses)
    assert re.search(r"gm .*?Assumes: clean-label, targeted, from scratch, gray box", attacks)


def test_help_names_every_command_and_loads_no_torch() -> None:
    code = "import sys; from bench.cli.main import main; main(['--help']); main(['run', '--help']); "
    code += "print('torch' in sys.modules, 'mlflow' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert finished.stdout.splitlines()[-1] == "False False"
    for command in (
        *("run", "sweep", "export", "import", "list", "show", "leaderboard", "sync", "ui", "check", "figure", "new"),
    ):
        assert re.search(rf"^  {command} ", finished.stdout, re.MULTILINE)
    assert not re.search(r"\w\.\.\.$", finished.stdout, re.MULTILINE), "no line is cut"


def test_a_shell_completes_commands_and_options() -> None:
    def completions(words: str) -> list[str]:
        environment = {**os.environ, COMPLETION: "bash_complete", "COMP_WORDS": words}
        environment["COMP_CWORD"] = str(len(words.split(" ")) - 1)
        finished = subprocess.run(
            [sys.executable, "-m", "bench"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
        )
        return [line.partition(",")[2] for line in finished.stdout.splitlines()]

    assert completions("poisoning-bench le") == ["leaderboard"]
    assert completions("poisoning-bench run --tr") == ["--trials", "--tracking"]
    assert completions("poisoning-bench leaderboard --format m") == ["md"]


@pytest.mark.parametrize("command", [["rnu"], []])
def test_an_unknown_command_and_none_at_all_are_one_line(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1 and ("did you mean 'run'?" in stderr if command else "missing command" in stderr)

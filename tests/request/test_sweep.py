"""Sweeps: many attacks as one run, sweep files, the plan, and two sweeps at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from bench.cli import main
from bench.execution.past import Past
from bench.execution.plan import plan
from bench.execution.recording import description
from bench.execution.tasks import Pretraining, SurrogateTraining, VictimTraining
from bench.foundation.errors import BadInput
from bench.request import sweep_file
from bench.request.protocol_file import resolve
from bench.science.selection import select_attacks, select_defenses
from bench.storage.records import Records, comparable
from tests.plans import prepare
from tests.tiny import SETS

ROOT = Path(__file__).parents[2]

ATTACK = '''
from pathlib import Path
import torch
from bench.science.attack import Attack
from bench.foundation.registry import register

@register("attack", "counted")
class Counted(Attack):
    """Counts its crafting."""
    uses_surrogates = False
    def craft(self, scene):
        with open("{log}", "a") as file:
            file.write(f"{{scene.trial.index}}\\n")
        return scene.poisons(torch.zeros_like(scene.base_pixels()))
'''
TINY = [word for item in [*SETS, "threat.surrogates=1"] for word in ("--set", item)]


def in_process(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["sweep", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def records(out: Path) -> dict[str, dict[str, Any]]:
    return {record["key"]: comparable(record) for record in Records(out / "records").all()}


@pytest.fixture
def counted(tmp_path: Path) -> tuple[str, Path]:
    """A plug-in file with an attack that writes a line for every crafting, and where it writes them."""
    file, log = tmp_path / "counted.py", tmp_path / "log"
    file.write_text(ATTACK.format(log=log))
    return str(file), log


# Several attacks


@pytest.mark.slow
def test_attacks_share_cells_and_poisons(
    counted: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, log = counted
    arguments = [
        "--attack", f"{file},random-noise-trigger", "--attack", "random-noise", "--defense",
        "none,noise-b,spectral+noise-b",
        *TINY, "--out", str(tmp_path / "out"), "--jobs", "1", "--tracking", "none",
    ]  # fmt: skip
    code, out, _ = in_process(capsys, *arguments, "--json")
    assert code == 0
    found = json.loads(out)
    names = list(dict.fromkeys((record["attack"], record["defense"]) for record in found))
    behind = ["none", "noise-b", "spectral+noise-b"]
    attacks = ["counted", "random-noise-trigger", "random-noise"]
    controls = [("none", "none"), ("none-trigger", "none")]
    assert names == [*controls, *((attack, defense) for attack in attacks for defense in behind)]
    assert {record["status"] for record in found} == {"done"} and len(found) == 2 * len(names)
    assert sorted(log.read_text().split()) == ["0", "1"]  # once per trial, for three defenses
    keys = {(record["attack"], record["trial"], record["poisons"]["key"]) for record in found}
    assert len(keys) == 5 * 2
    code, out, err = in_process(capsys, *arguments)
    assert code == 0 and "nothing; every trial has its record" in err and "to do" not in err


def test_a_failing_attack_costs_its_cells_only_and_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.py"
    bad = ATTACK.format(log=tmp_path / "log").replace(
        "return scene", 'raise RuntimeError("no luck")\n        return scene'
    )
    file.write_text(bad.replace('"counted"', '"bad"'))
    code, out, _ = in_process(
        capsys, "--attack", f"random-noise,{file}", "--defense", "none", *TINY, "--trials", "1", "--jobs", "1",
        "--out", str(tmp_path / "out"), "--tracking", "none",
    )  # fmt: skip
    assert code == 1
    assert "1 trials failed" in out and "quick: bad x none trial 0: crafting failed: RuntimeError: no luck" in out
    assert (
        "0/0 (1 failed)" in out
        and "no trial of bad undefended finished" in out.splitlines()[-1]
        and "random-noise" in out
    )


# The plan


def test_the_plan_says_what_is_there_and_what_is_to_be_made(
    counted: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, log = counted
    arguments = ["--attack", file, "--defense", "noise-b", *TINY, "--out", str(tmp_path / "out"), "--jobs", "1"]
    code, out, _ = in_process(capsys, *arguments, "--plan")
    assert code == 0 and not (tmp_path / "out").exists() and not log.exists()
    assert "0 pretrained networks, 0 surrogates, 2 poisons, 6 victims" in out and "no time estimate" in out
    assert in_process(capsys, *arguments, "--tracking", "none")[0] == 0
    shutil.rmtree(tmp_path / "out" / "records" / "quick" / "counted" / "noise-b")
    code, out, _ = in_process(capsys, *arguments, "--plan", "--trials", "3")
    rows = {tuple(line.split()[:2]): line.split()[2:5] for line in out.splitlines() if "counted" in line}
    assert rows[("counted", "none")] == ["3", "2", "1"] and rows[("counted", "noise-b")] == ["3", "0", "3"]
    assert "1 poisons, 5 victims" in out  # those of trials 0 and 1 are in the store
    assert "victims behind noise-b (3)" in out and "from 4 records" in out
    assert len(log.read_text().split()) == 2


def test_estimates_take_only_records_of_the_same_work(tmp_path: Path) -> None:
    cells = prepare("quick", SETS, attack="gm", defenses=["noise-b", "noise-b[mu=2]"], only=True).cells
    cell, study = cells[0], cells[0].study
    record = {
        "status": "done", "attack": "gm", "defense": "noise-b", "poisons": {"key": "k"},
        **description(study, cell.attack, cell.defense),
        "seconds": {"surrogates": 8.0, "craft": 4.0, "train": 2.0, "evaluate": 1.0}, "seeds": {"surrogates": [1, 2]},
    }  # fmt: skip
    slower = {**record, "seconds": {**record["seconds"], "train": 4.0}}
    past = Past([record, slower, {**record, "status": "failed"}])  # type: ignore[list-item, typeddict-item]
    assert past.count == 2

    def victim(attack: str, defense: str, *sets: str) -> VictimTraining:
        other = prepare("quick", [*SETS, *sets], attack=attack, defenses=[defense], only=True).cells[0]
        return VictimTraining.of(other.study, tmp_path, other.attack, other.defense, 0)

    def seconds(task: VictimTraining) -> tuple[float | None, float | None]:
        (crafting,) = task.needs()
        return past.seconds(task), past.seconds(crafting)

    assert seconds(victim("gm", "noise-b")) == (4.0, 4.0)  # (2 + 1 + 4 + 1) / 2, and the crafting of one key once
    assert seconds(victim("random-noise", "noise-b")) == (4.0, None)
    assert seconds(victim("gm", "noise-b[mu=2]")) == (None, 4.0)
    assert seconds(victim("gm[steps=3]", "noise-u")) == (None, None)
    assert seconds(victim("gm", "noise-b", "train.epochs=3")) == (None, None)
    assert past.seconds(SurrogateTraining.of(study, tmp_path, 0)) == 4.0
    assert past.seconds(Pretraining.of(study, tmp_path, "convnet", 0)) is None
    elsewhere = replace(study, device="cuda:1")
    assert past.seconds(replace(victim("gm", "noise-b"), study=elsewhere)) is None


# Sweep files


def test_blocks_take_what_stands_above_them(tmp_path: Path) -> None:
    file = tmp_path / "two.toml"
    file.write_text(
        'attacks = ["gm"]\ntrials = 3\nset = ["threat.eps=8"]\n'
        '[[block]]\ndefenses = ["friends-b"]\n'
        '[[block]]\nprotocols = ["quick", "quick-transfer"]\nattacks = ["bp"]\n'
        'trials = 1\nset = ["threat.surrogates=2"]\n'
    )
    first, second = sweep_file.read(str(file))[0]
    assert (first.protocols, first.attacks, first.defenses, first.trials) == (("quick",), ("gm",), ("friends-b",), 3)
    assert first.set == ("threat.eps=8",) and second.set == ("threat.eps=8", "threat.surrogates=2")
    assert (second.attacks, second.trials, second.defenses) == (("bp",), 1, ("none",))
    file.write_text(
        'attacks = ["random-noise"]\n[[block]]\nset = ["threat.eps=8"]\n[[block]]\nprotocols = ["quick", "quick"]\n'
    )
    parts = plan(sweep_file.read(str(file))[0]).parts
    assert [part.study.protocol.threat.eps for part in parts] == [8, 10, 10]
    assert all(len(part.cells) == 2 for part in parts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("attack = ['gm']", "unknown key 'attack'; did you mean 'attacks'?"),
        ("attacks = 'gm'", "bad value for 'attacks': 'gm'; allowed: list of text"),
        ("attacks = []", "bad value for 'attacks'"),
        ("trials = 0", "bad value for 'trials': 0; allowed: whole number or nothing, at least 1"),
        ("order = 'trial'", "bad value for 'order': 'trial'; allowed: one of longest, trials"),
        ("[[block]]\ntrials = 'x'", "bad value for 'block 1.trials': 'x'"),
        ("[block]\ntrials = 1", "write each block under a line [[block]]"),
        ("block = []", "write each block under a line [[block]]"),
        ("description = 3", "bad value for 'description'"),
        ("trials =", "is not TOML"),
        ("attacks = ['gn']", "unknown attack 'gn'; did you mean 'gm'?"),
        ("protocols = ['quik']", "unknown protocol 'quik'; did you mean 'quick'?"),
        ("set = ['threat.ep=8']", "did you mean 'eps'?"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, expected: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    code, out, err = in_process(capsys, str(file), "--out", str(tmp_path / "out"))
    assert code == 2 and out == "" and err.count("\n") == 1 and expected in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["friends-table9"], "unknown sweep 'friends-table9'; did you mean 'friends-table"),
        (["nowhere.toml"], "no readable sweep file 'nowhere.toml'"),
        (["friends-table1", "--attack", "gm"], "--attack: the sweep file names them"),
        (["--attack", "gm,,bp"], "unknown attack ''"),
        (["--defense", "spectral+nope"], "unknown defense 'nope'"),
        (["--engine", "ray"], "unknown engine 'ray'"),
        (["--engine", "slurm", "--set", "engine.gpu=1"], "did you mean 'gpus'?"),
        (["--engine", "slurm", "--jobs", "3"], "fix: --set engine.parallel=N"),
        (["--engine", "dask"], "fix: start `dask scheduler --host HOST`"),
        (["--address", "tcp://x:1"], "fix: --engine dask"),
        (["--set", "engine.gpus=1"], "engine 'local' has no settings"),
    ],
)
def test_bad_options_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    code, out, err = in_process(capsys, *arguments, "--out", str(tmp_path / "out"))
    assert code == 2 and out == "" and err.count("\n") == 1 and expected in err
    assert not (tmp_path / "out").exists()


def test_the_command_line_changes_every_block(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = in_process(
        capsys, "friends-table4", "--protocol", "quick", "--trials", "1", "--seed", "7", "--plan",
        "--out", str(tmp_path),
    )  # fmt: skip
    assert code == 0 and "protocol quick, seed 7\n" in out
    rows = [line.split() for line in out.splitlines() if line.startswith(("gm ", "none "))]
    assert len(rows) == 9 and {row[2] for row in rows} == {"1"}, "trials"
    assert "1 poisons, 9 victims" in out


@pytest.mark.parametrize("name", sweep_file.names())
def test_shipped_files_resolve(name: str) -> None:
    """All but the data: CIFAR-10 is not here."""
    blocks, description, text = sweep_file.read(name)
    assert description and "CIFAR" not in description and max(map(len, text.splitlines())) <= 125
    for block in blocks:
        for preset in block.protocols:
            protocol, rest = resolve(preset, block.sets())
            select_attacks(block.attacks, protocol, rest)
            select_defenses(block.defenses, protocol, rest)


PAPERS = {
    "friends-table1": ("friends.csv", "1", {"adv-training": "adv-training-friends"}, set()),
    "friends-table2": ("friends.csv", "2", {}, {("sleeper", "strong-augmentation")}),
    "friends-table3": ("friends.csv", "3", {}, set()),
    "friends-table4": ("friends.csv", "4", {}, set()),
    "denoise-table1": ("diffusion_denoising.csv", "1", {}, set()),
    "denoise-table2": ("diffusion_denoising.csv", "2", {}, {"clbd", "htbd"}),
    "denoise-table5": ("diffusion_denoising.csv", "5", {"friends": "friends-u"}, {"roe"}),
}


@pytest.mark.parametrize("name", sorted(PAPERS))
def test_shipped_files_have_every_row_of_their_table(name: str) -> None:
    """Against the published tables: attack, defense, eps, scenario and (where it is printed) epochs and trials."""
    import csv

    source, table, ours, lacking = PAPERS[name]
    with (resources.files("bench.published") / source).open() as file:
        rows = [row for row in csv.DictReader(file) if row["table"] == table]
    assert rows
    wanted = set()
    for row in rows:
        defense = f"denoise-{row['sigma']}" if row["defense"] == "diffusion" else row["defense"]
        if {row["attack"], defense, (row["attack"], defense)} & lacking:  # type: ignore[operator]
            continue
        box = (row["knowledge"], row["surrogates"] or "1") if "knowledge" in row else ()
        epochs = row["epochs"] if source == "friends.csv" else ""
        wanted.add(
            (row["attack"], ours.get(defense, defense), int(row["eps"]), row["scenario"], epochs, row["trials"], box)
        )
    found = set()
    for block in sweep_file.read(name)[0]:
        for preset in block.protocols:
            protocol, _ = resolve(preset, block.sets())
            threat = protocol.threat
            knowledge = "black-box" if threat.architectures else "white-box"
            for attack in block.attacks:
                for defense in dict.fromkeys((*(() if block.only else ("none",)), *block.defenses)):
                    box = (knowledge, str(threat.surrogates)) if source != "friends.csv" else ()
                    epochs = str(protocol.train.epochs) if source == "friends.csv" else ""
                    found.add((attack, defense, threat.eps, threat.scenario, epochs, str(protocol.trials), box))
    missing = {row for row in wanted if row not in found and (*row[:5], "24", row[6]) not in found}
    assert not missing


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "sweeps"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in PAPERS)
    assert main(["show", "sweep", "friends-table2"]) == 0
    assert "85 epochs" in capsys.readouterr().out
    assert main(["show", "engine", "slurm"]) == 0
    assert "partition" in capsys.readouterr().out
    assert tomllib.loads((resources.files("bench.request.sweeps") / "friends-table2.toml").read_text())["block"]


# Interrupts, and two at once


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "bench", "sweep", *arguments, "--tracking", "none"]


@pytest.mark.slow
def test_two_sweeps_at_once_craft_once_and_end_with_the_same_records(counted: tuple[str, Path], tmp_path: Path) -> None:
    file, log = counted
    out = tmp_path / "out"
    arguments = command("--attack", file, "--defense", "noise-b", *TINY, "--out", str(out), "--jobs", "1", "--json")
    both = [
        subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    told = [json.loads(process.communicate(timeout=300)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    first, second = ({record["key"]: comparable(record) for record in each} for each in told)
    assert first == second == records(out) and len(first) == 6
    assert sorted(log.read_text().split()) == ["0", "1"]


WAITING = """
    def craft(self, scene):
        import os, time
        Path('{log}.' + str(os.getpid())).touch()
        time.sleep(120)
"""


@pytest.mark.slow
def test_an_interrupt_ends_the_workers_and_the_same_command_goes_on(counted: tuple[str, Path], tmp_path: Path) -> None:
    file, log = counted
    whole = Path(file).read_text()
    Path(file).write_text(whole + WAITING.format(log=log))
    arguments = command("--attack", file, *TINY, "--out", str(tmp_path / "out"), "--jobs", "2", "--only")
    process = subprocess.Popen(
        arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # A shell has its background jobs ignore the interrupt, and they hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(pids := [int(path.suffix[1:]) for path in tmp_path.glob("log.*")]) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 130
    assert "interrupted; the same command goes on" in err and "Traceback" not in err
    deadline = time.monotonic() + 15
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived the interrupt"
        time.sleep(0.1)
    Path(file).write_text(whole)
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ})
    assert done.returncode == 0, done.stderr
    assert {record["status"] for record in records(tmp_path / "out").values()} == {"done"}


def test_bad_input_names_the_file() -> None:
    with pytest.raises(BadInput, match="no readable sweep file 'x.toml'"):
        sweep_file.read("x.toml")

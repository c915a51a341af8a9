"""The command line: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from bench.cli import main
from tests import aftermath
from tests.aftermath import ROOT, command, records
from tests.tiny import SETS

RUN = [*aftermath.RUN, "--tracking", "none"]


def in_process(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.slow
def test_json_is_one_array_and_nothing_else(undisturbed: Path, tmp_path: Path) -> None:
    finished = subprocess.run(
        command(*RUN, "--out", str(undisturbed), "--json"), cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0
    array = json.loads(finished.stdout)
    assert len(array) == 6
    for record in array:
        for field in ("attack", "defense", "protocol", "trial", "status", "success", "clean_accuracy", "seconds"):
            assert field in record
        assert record["cached"] is True and set(record["seconds"]) == {"surrogates", "craft", "train", "evaluate"}


def test_the_table_names_the_cells_and_the_base_rate(undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = in_process(capsys, *RUN, "--out", str(undisturbed))
    assert code == 0
    assert out.splitlines()[-1].startswith("gm succeeded in ")
    for word in (
        "clean control",
        "undefended",
        "friends-b",
        "/2",
        "without poisons in",
        "clean acc.",
        str(undisturbed),
    ):
        assert word in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--attack", "gn"], "unknown attack 'gn'; did you mean 'gm'?"),
        (["--defense", "freinds-b"], "did you mean 'friends-b'?"),
        (["--protocol", "quik"], "did you mean 'quick'?"),
        (["--set", "train.epoch=2"], "did you mean 'epochs'?"),
        (["--set", "attack.step=2"], "did you mean 'steps'?"),
        (["--set", "threat.eps=-1"], "'threat.eps': -1; allowed: whole number, at least 1, at most 255"),
        (["--set", "threat.budget=2"], "'threat.budget': 2; allowed: number, more than 0, at most 1"),
        (["--trials", "0"], "'trials': 0; allowed: whole number or nothing, at least 1, at most 100000"),
        (["--trials", "two"], "invalid value for '--trials': 'two' is not a valid integer"),
        (["--device", "tpu"], "unknown device 'tpu'; allowed: auto, cpu, cuda"),
        (["--device", "cuda:99"], "no device 'cuda:99': torch sees"),
        (["--dataset", "folder:/nonexistent"], "has no readable sub-folder 'train/'"),
        (["--dataset", "mnist"], "unknown dataset 'mnist'"),
        (["--protocol", "cifar10-mini", "--data", "/nonexistent"], "fix: put cifar-10-python.tar.gz"),
        (["--out", "/proc/nothing"], "cannot be written"),
        (["--jobs", "0"], "--jobs 0; allowed: 1 to 1024"),
        (["--seed", "x"], "invalid value for '--seed': 'x' is not a valid integer; see: python -m bench run --help"),
        (["--frobnicate"], "no such option '--frobnicate'"),
        (["--deffense", "none"], "no such option '--deffense'; did you mean '--defense'?"),
        (["--seed", "1", "--seed", "2"], "--seed is given more than once; fix: give it once"),
        (["--out", "a", "--out", "b"], "--out is given more than once; fix: give it once"),
        (["--only", "--only"], "--only is given more than once; fix: give it once"),
        (["--defense", "friends-b[mu]"], "write 'mu' as setting=value"),
        (["--defense", "friends-b[mux=8]"], "unknown key 'defense.mux'; did you mean 'mu'?"),
        (["--defense", "friends-b[mu=0]"], "'defense.mu': 0; allowed: whole number, at least 1"),
        (["nowhere.toml"], "no readable sweep file 'nowhere.toml'"),
        (["friends-tabl1"], "did you mean 'friends-table1'?"),
        (["friends-table1", "--attack", "gm"], "--attack: the sweep file names them"),
        (["--defense", "nowhere/my.py"], "no defense file 'nowhere/my.py'"),
        (["--tracking", "./mlruns"], "fix: sqlite:///"),
    ],
)
def test_bad_input_is_one_line_exit_2_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    out = ["--out", str(tmp_path / "out")] if "--out" not in arguments else []
    code, stdout, stderr = in_process(capsys, "run", *out, *arguments)
    assert code == 2 and stdout == ""
    assert stderr.startswith("bench: ") and stderr.count("\n") == 1 and expected in stderr
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    code, _, stderr = in_process(capsys, *RUN, "--out", str(tmp_path / "file"))
    assert code == 2 and "cannot be written" in stderr


def test_a_failed_trial_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bad.py"
    file.write_text(
        "from bench.foundation.registry import register\n"
        "from bench.science.defense import Defense\n"
        '@register("defense", "bad")\n'
        "class Bad(Defense):\n"
        '    """Fails."""\n'
        "    def epoch(self, run, epoch):\n"
        '        raise RuntimeError("broken on purpose")\n'
    )
    code, stdout, stderr = in_process(
        capsys, "run", "--attack", "random-noise", "--defense", str(file), "--tracking", "none", "--trials", "1",
        "--out", str(tmp_path / "out"), "--jobs", "1", *[word for item in SETS for word in ("--set", item)],
    )  # fmt: skip
    assert code == 1
    assert "0/0 (1 failed)" in stdout and "broken on purpose" in stderr


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = in_process(capsys, "list")
    assert code == 0
    names = "gm random-noise none friends-u friends-b friends-g friendly noise-u noise-b noise-g quick cifar10-scratch"
    for name in (
        *names.split(),
        "cifar10-mini",
        "photographs",
        "folder",
        "resnet18",
        "convnet",
        "vgg11",
        "mobilenet-v2",
    ):
        assert f"  {name} " in out


def test_show_gives_card_settings_and_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = in_process(capsys, "show", "defense", "friends-g")
    assert "NeurIPS 2022" in out and 'noise = "gaussian"' in out and "at least 1, at most 127" in out
    _, out, _ = in_process(capsys, "show", "protocol", "cifar10-scratch")
    assert "drops = [30, 50, 70]" in out
    for kind, name in (("attack", "gm"), ("dataset", "folder"), ("model", "lenet")):
        code, out, _ = in_process(capsys, "show", kind, name)
        assert code == 0 and name in out


def test_sync_and_ui_say_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process(capsys, "sync", "--out", str(tmp_path))[0] == 2
    code, _, stderr = in_process(capsys, "ui", "--out", str(tmp_path))
    assert code == 2 and "no MLflow store" in stderr


def test_check_tells_kept_from_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = in_process(capsys, "check", "random-noise")
    assert code == 0 and "FAILED" not in out and out.count("ok") >= 6
    code, _, stderr = in_process(capsys, "check", "frends-b")
    assert code == 2 and "did you mean 'friends-b'?" in stderr


def test_a_run_on_a_folder_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, count in (("train", 12), ("test", 4)):
        for label, name in enumerate(("dark", "light")):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (16, 16), (60 + 120 * label, 50 + 3 * i, 90)).save(folder / f"{i}.png")
    code, stdout, _ = in_process(
        capsys, "run", "--attack", "gm", "--dataset", f"folder:{tmp_path / 'data'}", "--json", "--jobs", "1",
        "--out", str(tmp_path / "out"), "--tracking", "none", "--trials", "1", "--set", "train.epochs=2",
        "--set", "train.batch=8", "--set", "threat.budget=0.08", "--set", "threat.surrogates=1",
        "--set", "attack.steps=2",
    )  # fmt: skip
    assert code == 0
    array = json.loads(stdout)
    assert [record["data"]["classes"] for record in array] == [["dark", "light"]] * 2
    assert array[1]["poisons"]["n"] == 2


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_records(undisturbed: Path, tmp_path: Path) -> None:
    """kill -9 of the whole run at moments spread over its length (BENCH_KILLS of them), then the same command."""
    kills = int(os.environ.get("BENCH_KILLS", "3"))
    arguments = command(*RUN, "--out", str(tmp_path), "--jobs", "2", "--json")
    for kill in range(kills):
        process = subprocess.Popen(
            arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        # Golden-section moments: spread evenly whatever their number. Workers die with their parent on their own.
        time.sleep(3 + 9 * ((kill * 0.618034) % 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    assert records(tmp_path) == records(undisturbed)
    leftovers = [path for path in tmp_path.rglob("*.damaged")]
    assert leftovers == []


@pytest.mark.slow
def test_mlflow_shows_cells_and_trials_live_and_after_sync(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    live = shutil.copytree(undisturbed, tmp_path / "live")
    assert in_process(capsys, *RUN[:-2], "--out", str(live), "--json")[0] == 0
    late = shutil.copytree(undisturbed, tmp_path / "late")
    code, out, _ = in_process(capsys, "sync", "--out", str(late))
    assert code == 0 and "3 cells, 6 trials logged, 0 already there" in out
    for folder in (live, late):
        client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
        experiment = client.get_experiment_by_name("quick")
        cells = client.search_runs([experiment.experiment_id], "tags.`bench.kind` = 'cell'")  # type: ignore[union-attr]
        trials = client.search_runs([experiment.experiment_id], "tags.`bench.kind` = 'trial'")  # type: ignore[union-attr]
        assert sorted(run.info.run_name for run in cells) == ["gm x friends-b", "gm x none", "none x none"]
        assert len(trials) == 6 and {run.info.status for run in (*cells, *trials)} == {"FINISHED"}
        (poisoned,) = [run for run in cells if run.info.run_name == "gm x none"]
        assert poisoned.data.metrics["n_trials"] == 2
        assert {item.path for item in client.list_artifacts(poisoned.info.run_id)} == {"config.json", "poisons.png"}

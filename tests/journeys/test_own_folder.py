"""A person's own folder of images: it is what it holds, wherever it lies and however its path is written."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from bench.api import results
from bench.cli import main
from bench.storage.records import Records, comparable, parse
from bench.views.leaderboard import leaderboard

SETS = ["train.epochs=1", "train.batch=8", "threat.budget=0.08", "threat.surrogates=1"]
RUN = ["--only", "--trials", "1", "--jobs", "1", "--device", "cpu", *(w for item in SETS for w in ("--set", item))]
RANDOM = ["run", "--attack", "random-noise", *RUN, "--tracking", "none"]
Said = Callable[..., tuple[str, str]]


def images(folder: Path) -> Path:
    """Two classes, 12 + 4 images of 16 pixels."""
    for split, count in (("train", 12), ("test", 4)):
        for label, name in enumerate(("dark", "light")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                image = Image.new("RGB", (16, 16), (60 + 120 * label, 50 + 3 * i, 90))
                image.save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, which holds a data set `d`."""
    monkeypatch.chdir(tmp_path)
    images(tmp_path / "d")
    return tmp_path


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """What a command prints; it must end well."""

    def run(*arguments: str) -> tuple[str, str]:
        capsys.readouterr()
        assert main(arguments) == 0, capsys.readouterr().err
        printed = capsys.readouterr()
        return printed.out, printed.err

    return run


def test_however_its_path_is_written_it_is_one_data_set(here: Path, said: Said) -> None:
    os.symlink("d", "link")
    shutil.copytree("d", "moved/elsewhere")
    first = json.loads(said(*RANDOM, "--dataset", "folder:d", "--out", "out", "--json")[0])
    for place in ("d/", "./d", str(here / "d"), "link", "../" + here.name + "/d", "moved/elsewhere"):
        again = json.loads(said(*RANDOM, "--dataset", f"folder:{place}", "--out", "out", "--json")[0])
        assert [record["cached"] for record in again] == [True], place
        assert [record["key"] for record in again] == [record["key"] for record in first]
    assert len(list(Path("out/records").rglob("*.json"))) == 1
    said(*RANDOM, "--dataset", "folder:moved/elsewhere", "--out", "copy")
    (one,), (other,) = (list(Records(Path(out) / "records").all()) for out in ("out", "copy"))
    assert comparable(one) == comparable(other)
    assert (one["places"], other["places"]) == (
        {"dataset": str(here / "d")}, {"dataset": str(here / "moved" / "elsewhere")},
    )  # fmt: skip
    assert str(here) not in json.dumps(comparable(one))


def test_other_images_are_another_data_set(here: Path, said: Said) -> None:
    first = json.loads(said(*RANDOM, "--dataset", "folder:d", "--out", "out", "--json")[0])
    images(here / "e")
    Image.new("RGB", (16, 16), (1, 2, 3)).save(here / "e" / "train" / "dark" / "0.png")
    other = json.loads(said(*RANDOM, "--dataset", "folder:e", "--out", "out", "--json")[0])
    assert other[0]["key"] != first[0]["key"] and not other[0]["cached"]


def test_settings_that_change_no_image_change_no_key(here: Path, said: Said) -> None:
    first = json.loads(said(*RANDOM, "--dataset", "folder:d", "--out", "out", "--json")[0])
    every = ["--dataset", "folder:d", "--set", "dataset.train_per_class=12", "--set", "dataset.test_per_class=0"]
    again = json.loads(said(*RANDOM, *every, "--out", "out", "--json")[0])
    assert again[0]["cached"] and again[0]["key"] == first[0]["key"]


def test_records_of_older_versions_are_compared_with_new_ones(here: Path, said: Said) -> None:
    """They name the folder by its path; the fingerprint of its content was there already."""
    text = said("run", *RANDOM[1:], "--defense", "none,cutmix", "--dataset", "folder:d", "--out", "out", "--json")[0]
    undefended, defended = json.loads(text)
    del undefended["places"], undefended["digest"]  # which older versions did not write
    undefended["settings"]["protocol"]["dataset"]["name"] = "folder:/long/ago"
    undefended["data"]["name"] = "folder:ago"
    board = leaderboard([parse(json.dumps(record).encode()) for record in (undefended, defended)])
    assert [entry.defense_label for entry in board if entry.drop is not None] == ["cutmix"]


def test_what_json_prints_is_read_by_every_view(here: Path, said: Said) -> None:
    (here / "a.json").write_text(said(*RANDOM, "--dataset", "folder:d", "--out", "out", "--json")[0])
    assert "random-noise" in said("leaderboard", "--records", "a.json")[0]
    assert "random-noise" in said("leaderboard", "a.json")[0]
    said("figure", "scatter", "--records", "a.json", "--to", "scatter.png")
    assert (here / "scatter.png").is_file()
    assert [record["attack"] for record in results.read([here / "a.json"], print)] == ["random-noise"]


def test_a_figure_of_poisons_finds_images_that_were_moved(
    here: Path, said: Said, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said(*RANDOM, "--dataset", "folder:d", "--out", "out")
    (here / "other folder").mkdir()
    monkeypatch.chdir(here / "other folder")
    figure = ["figure", "poisons", "--out", str(here / "out")]
    table = said(*figure, "--csv", "before.csv")[0] and Path("before.csv").read_text()
    (here / "d").rename(here / "now here")
    assert main(figure) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "fix: --dataset folder:PATH of the same images" in message
    for repair in (["--dataset", "folder:../now here"], ["--data", str(here / "now here")]):
        said(*figure, *repair, "--csv", "after.csv")
        assert Path("after.csv").read_text() == table
    images(here / "others")
    Image.new("RGB", (16, 16)).save(here / "others" / "train" / "dark" / "0.png")
    assert main([*figure, "--dataset", "folder:../others"]) == 2
    message = capsys.readouterr().err
    assert "its fingerprint differs; fix: --dataset folder:PATH" in message and message.count("\n") == 1
    assert main([*figure, "--dataset", "photographs"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_that_import_prints_runs_as_it_stands(here: Path, said: Said) -> None:
    """Another protocol, data set, place, seed and settings than the defaults, and names that a shell would split."""
    (here / "my $own.toml").write_text(
        'name = "own"\nmodel = "convnet"\n[dataset]\nname = "folder:nowhere"\n[threat]\nbudget = 0.08\nsurrogates = 1\n'
    )
    (here / "d").rename(here / "it's mine")
    study = [
        *("--protocol", "my $own.toml", "--dataset", "folder:it's mine", "--data", "some where", "--seed", "3"),
        *(word for item in (*SETS[:2], "threat.eps=9") for word in ("--set", item)),
    ]
    crafted = ["--attack", "random-noise", "--trials", "1", "--jobs", "1", "--device", "cpu", "--out", "out"]
    said("export", "the poisons", *crafted, *study)
    out, _ = said("import", "the poisons", "to use", *study)
    command = shlex.split(out.partition("run them with: ")[2])
    assert command[:3] == ["python", "-m", "bench"]
    text, _ = said(*command[3:], "--only", "--jobs", "1", "--tracking", "none", "--out", "out", "--json")
    (record,) = json.loads(text)
    assert (record["status"], record["protocol"], record["seed"]) == ("done", "own", 3)
    assert record["settings"]["protocol"]["threat"]["eps"] == 9


def test_what_run_prints_to_go_on_with_is_quoted(here: Path, said: Said) -> None:
    out, _ = said(*RANDOM, "--dataset", "folder:d", "--out", "my $out & more")
    (line,) = [line for line in out.splitlines() if line.startswith("leaderboard: ")]
    command = shlex.split(line.removeprefix("leaderboard: "))
    assert command == ["python", "-m", "bench", "leaderboard", "--out", "my $out & more"]
    assert "random-noise" in said(*command[3:])[0]

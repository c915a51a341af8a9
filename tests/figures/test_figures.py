"""Figures: the numbers behind each, that a file comes out, and what is refused."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from scipy import stats
from torch import nn

from bench.cli import main
from bench.defenses import friends
from bench.figures import canvas, landscape, poisons, request, training
from bench.foundation import registry
from bench.request.request import Request
from bench.science.crafting import poisons_of
from bench.science.dataset import Place
from bench.science.evaluation import ModelPredictor, evaluate
from bench.science.identity import identities
from bench.science.victim import trainings
from bench.science.workspace import Workspace
from bench.storage.records import Records
from tests.records import lines, record
from tests.tiny import ATTACK_SETS, SETS

START = "defense.friends-b.start=1"  # two epochs are trained: the noise is made before the second
TRAINING = [word for item in (*SETS, START) for word in ("--set", item)]
CRAFTING = [*TRAINING, *(word for item in ATTACK_SETS for word in ("--set", item))]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a tiny run of gm, undefended and behind friends-b, two trials."""
    out = tmp_path_factory.mktemp("ran")
    run = ["run", "--attack", "gm", "--defense", "none", "--defense", "friends-b", "--only", *CRAFTING]
    assert main([*run, "--out", str(out), "--tracking", "none", "--jobs", "1", "--json"]) == 0
    return out


def figure(folder: Path, *arguments: str) -> tuple[list[dict[str, str]], bytes]:
    """The table and the image of `bench figure`."""
    image, table = folder / "figure.png", folder / "figure.csv"
    assert main(["figure", *arguments, "--to", str(image), "--csv", str(table)]) == 0
    return list(csv.DictReader(io.StringIO(table.read_text()))), image.read_bytes()


def is_an_image(png: bytes) -> bool:
    Image.open(io.BytesIO(png)).verify()
    with Image.open(io.BytesIO(png)) as image:
        return image.width >= 600 and len(image.convert("L").getcolors() or [0] * 300) > 2


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., str]:
    def write(*records: Any) -> str:
        return str(lines(tmp_path / "records.jsonl", records))

    return write


# From records


def test_scatter_has_exact_intervals_of_every_cell(tmp_path: Path, written: Callable[..., str]) -> None:
    accuracies = [0.8, 0.9, 0.7, 0.84]
    records = [record("gm", "none", i, float(i < 3), accuracy) for i, accuracy in enumerate(accuracies)]
    records += [record("$x_1^", "d", 0, 0.25, 0.5), record("gm", "failed", 0, None)]
    rows, png = figure(tmp_path, "scatter", "--records", written(*records))
    assert is_an_image(png)
    assert [(row["attack"], row["defense"], row["n"]) for row in rows] == [("gm", "none", "4"), ("$x_1^", "d", "1")]
    found = {name: float(rows[0][name]) for name in rows[0] if name not in ("attack", "defense", "n")}
    exact = stats.binomtest(3, 4).proportion_ci(method="exact")
    low, high = stats.t.interval(0.95, 3, loc=0.81, scale=stats.sem(accuracies))
    assert found == pytest.approx({
        "success": 0.75, "success_low": exact.low, "success_high": exact.high,
        "clean_accuracy": 0.81, "clean_accuracy_low": low, "clean_accuracy_high": high,
    })  # fmt: skip
    assert rows[1]["clean_accuracy_low"] == rows[1]["clean_accuracy_high"] == "0.5"


def test_matching_loss_shows_the_kept_restart_of_each_crafting_once(
    tmp_path: Path, written: Callable[..., str]
) -> None:
    first = {"key": "a" * 64, "n": 1, "losses": [[1.0, 0.9], [0.8, 0.3]], "final_losses": [0.9, 0.2]}
    second = {"key": "b" * 64, "n": 1, "losses": [[0.7, 0.1]], "final_losses": [0.1], "retrained_at": [1]}
    records = [
        record("gm", "none", 0, 1, 0.5, poisons=first),
        record("gm", "other", 0, 1, 0.5, poisons=first),
        record("gm", "none", 1, 1, 0.5, poisons=second),
        record("none", "none", 0, 0, 0.5),
    ]
    rows, png = figure(tmp_path, "matching-loss", "--records", written(*records))
    assert is_an_image(png)
    found = [(row["attack"], *(float(row[name]) for name in ("trial", "restart", "step", "objective"))) for row in rows]
    assert found == [("gm", 0, 1, 0, 0.8), ("gm", 0, 1, 1, 0.3), ("gm", 1, 0, 0, 0.7), ("gm", 1, 0, 1, 0.1)]


def test_records_of_the_output_folder_are_read_and_chosen_from(ran: Path, tmp_path: Path) -> None:
    rows, _ = figure(tmp_path, "scatter", "--out", str(ran), "--defense", "friends-b")
    assert [(row["attack"], row["defense"], row["n"]) for row in rows] == [("gm", "friends-b", "2")]


def test_poisons_are_those_of_the_store_beside_their_bases(ran: Path, tmp_path: Path) -> None:
    rows, png = figure(tmp_path, "poisons", "--out", str(ran), "--trial", "1")
    assert is_an_image(png)
    (one,) = (r for r in Records(ran / "records").all() if r["trial"] == 1 and r["defense"] == "none")
    assert [int(row["id"]) for row in rows] == one["draw"]["base_ids"]
    assert {int(row["label"]) for row in rows} == {one["draw"]["target_class"]}
    assert max(int(row["largest_change"]) for row in rows) == one["poisons"]["max_change"] > 0
    trio = poisons.measure(request.FigureRequest(Request(), ran, trial=1)).content
    make = registry.find("dataset", "photographs").make
    values = {"size": 16, "train_per_class": 10, "test_per_class": 5, "colour": "grey", "deviation": 0.23}
    dataset = make(make.Settings(**values), Place())
    assert torch.equal(trio.base, dataset.train.images[one["draw"]["base_ids"][: len(trio.base)]])
    assert torch.equal(trio.base.int() + trio.change, trio.poison.int())


# Of networks that are trained


def test_friendly_noise_is_the_very_noise_of_the_victim(
    ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    original = friends.friendly_noise

    def looked_at(*arguments: Any) -> torch.Tensor:
        seen.append(original(*arguments))
        return seen[-1]

    monkeypatch.setattr(friends, "friendly_noise", looked_at)
    run = ["run", "--attack", "none", "--defense", "friends-b", "--only", "--jobs", "1", "--tracking", "none"]
    assert main([*run, "--trials", "1", *TRAINING, "--out", str(tmp_path / "out")]) == 0
    monkeypatch.undo()
    (noise,) = seen
    arguments = ["friendly-noise", "--out", str(ran), *TRAINING]
    rows, png = figure(tmp_path, *arguments)
    assert is_an_image(png)
    assert [int(row["level"]) for row in rows] == list(range(-16, 17))
    assert [int(row["count"]) for row in rows] == [int((noise == level).sum()) for level in range(-16, 17)]
    assert math.fsum(float(row["share"]) for row in rows) == pytest.approx(1)

    def no_more(*_: Any, **__: Any) -> None:
        raise AssertionError("the second call trains")

    monkeypatch.setattr(training.Local, "run", no_more)
    assert figure(tmp_path, *arguments) == (rows, png)


class _Mean(nn.Module):
    """Logits (10 m, 0) of images whose mean pixel is m."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        mean = pixels.mean(dim=(1, 2, 3))
        return torch.stack([10 * mean, torch.zeros_like(mean)], dim=1)


def test_a_surface_is_the_mean_loss_at_clipped_images() -> None:
    base = torch.tensor([0.5, 0.9]).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    along, across = torch.full_like(base, 0.2), torch.full_like(base, -0.05)
    grid = landscape.surface(_Mean(), base, along, across, torch.tensor([0, 1]))  # type: ignore[arg-type]
    assert grid.shape == (17, 25)

    def by_hand(u: float, v: float) -> float:
        first, second = (min(max(start + 0.2 * u - 0.05 * v, 0), 1) for start in (0.5, 0.9))
        return (math.log1p(math.exp(-10 * first)) + math.log1p(math.exp(10 * second))) / 2

    found = landscape.Surface("", grid.tolist())
    for u, v in ((0.0, 0.0), (1.0, 0.0), (-1.0, -2.0), (2.0, 1.5)):
        assert found.at(u, v) == pytest.approx(by_hand(u, v), rel=1e-5)


@pytest.mark.slow
def test_the_landscape_is_that_of_the_recorded_victims(
    ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["landscape", "--out", str(ran), *CRAFTING]
    rows, png = figure(tmp_path, *arguments)
    assert is_an_image(png) and len(rows) == 3 * 17 * 25
    loss = {(row["network"], float(row["u"]), float(row["v"])): float(row["loss"]) for row in rows}
    names = ("attacker's surrogate", "victim, undefended", "victim, friends-b")
    assert len({loss[name, 1.0, 0.0] for name in names}) == 3

    plan = request.plan_of(request.FigureRequest(Request(set=tuple(CRAFTING[1::2])), ran), "gm", "friends-b")
    (cell,) = plan.cells
    space = Workspace.at(plan.study, ran, lambda *_: None, print)
    network = trainings(space, plan.study.case(0), cell.attack, cell.defense)[0].model
    outcome = evaluate(ModelPredictor(network), plan.study.dataset, plan.study.case(0).trial, "cpu")
    recorded = Records(ran / "records").find(identities(plan.study).record(cell.attack, cell.defense, 0))
    assert recorded is not None and outcome.as_dict() == recorded["outcome"]
    crafted = poisons_of(space, plan.study.case(0), cell.attack)[0]
    with torch.no_grad():
        own = nn.functional.cross_entropy(network(crafted.images / 255), crafted.labels).item()
    assert loss["victim, friends-b", 1.0, 0.0] == pytest.approx(own, rel=1e-4)

    def no_more(*_: Any, **__: Any) -> None:
        raise AssertionError("the second call trains")

    monkeypatch.setattr(training.Local, "run", no_more)
    assert figure(tmp_path, *arguments)[0] == rows


# What comes out, and what is refused


def test_without_a_name_every_figure_is_listed_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figure"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == registry.names("figure") and all(
        len(line.split()) > 5 for line in lines
    )


@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".pdf", b"%PDF"), (".png", b"\x89PNG")])
def test_other_formats_and_the_same_bytes_again(
    suffix: str, start: bytes, tmp_path: Path, written: Callable[..., str]
) -> None:
    records, to = written(record("gm", "none", 0, 1, 0.5)), tmp_path / "new folder" / f"figure{suffix}"
    command = ["figure", "scatter", "--records", records, "--to", str(to)]
    assert main(command) == 0
    first = to.read_bytes()
    assert first.startswith(start)
    assert main(command) == 0 and to.read_bytes() == first


GOOD = record("gm", "none", 0, 1, 0.5)


@pytest.mark.parametrize(
    ("arguments", "records", "reason"),
    [
        (["scater"], None, "unknown figure 'scater'; did you mean 'scatter'?"),
        (["scatter", "--to", "x.gif"], [GOOD], "allowed: a file that ends in .png or .svg or .pdf"),
        (["scatter", "--csv", "x.png"], [GOOD], "allowed: a file that ends in .csv"),
        (["scatter", "--trial", "-1"], [GOOD], "--trial -1; allowed: 0 and more"),
        (["scatter"], [], "no trial records in"),
        (["scatter"], [{**GOOD, "status": "failed"}], "none of these trials is finished"),
        (["scatter", "--attack", "gn"], [GOOD], "no records with attack 'gn'; did you mean 'gm'?"),
        (["scatter", "--set", "threat.eps=8"], [GOOD], "--set and --dataset do not apply"),
        (["scatter"], [GOOD, {**GOOD, "protocol": "q"}], "records of cifar10-scratch, q; choose one with --protocol"),
        (["matching-loss"], [GOOD], "these records hold no crafting losses"),
        (
            ["matching-loss"],
            [{**GOOD, "poisons": {"losses": [[]], "final_losses": [0.0]}}],
            "these records hold no crafting losses",
        ),
        (["poisons"], [record("none", "none", 0, 0, 0.5)], "these records hold no poisons"),
        (["poisons"], [{**GOOD, "poisons": {"n": 1, "key": "0" * 64}}], "are not in"),
        (["landscape"], [GOOD], "--records does not apply"),
        (["landscape", "--attack", "none"], None, "attack 'none' crafts no poisons"),
        (["landscape", "--protocol", "quik"], None, "did you mean 'quick'?"),
        (["friendly-noise", "--defense", "mixup"], None, "defense 'mixup' makes no friendly noise"),
        (["friendly-noise", "--set", "defense.start=40"], None, "fix: --set defense.start=29"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    arguments: list[str], records: list[Any] | None, reason: str, tmp_path: Path, written: Callable[..., str],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    more = [] if records is None else ["--records", written(*records)]
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    assert main(["figure", *arguments, *more, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert reason in said and said.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        ({"schema": 1}, "line 2, key: Field required"),
        ({**GOOD, "schema": 99}, "line 2, schema: Input should be 1"),
        ({**GOOD, "success": "much"}, "line 2, success: Input should be a valid number"),
    ],
)
def test_damaged_records_are_reported_and_skipped(
    damaged: dict[str, Any], reason: str, tmp_path: Path, written: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rows, _ = figure(tmp_path, "scatter", "--records", written(GOOD, damaged))
    assert [row["n"] for row in rows] == ["1"]
    said = capsys.readouterr().err
    assert f"1 damaged record skipped: {reason}" in said and said.count("\n") == 1
    assert main(["figure", "scatter", "--records", written(damaged), "--to", str(tmp_path / "no.png")]) == 2
    assert "no trial records in" in capsys.readouterr().err.splitlines()[-1]


def test_a_missing_matplotlib_is_one_line_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(canvas.importlib.util, "find_spec", lambda name: None)
    assert main(["figure", "landscape"]) == 2
    assert "fix: pip install matplotlib" in capsys.readouterr().err

"""Several victims of a trial: crafting is paid once, more victims add records to those that are there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.api.work import requests
from bench.cli.main import main
from bench.foundation.errors import BadInput
from bench.science.identity import identities
from bench.science.seeds import derive
from bench.storage.records import comparable
from tests.plans import prepare
from tests.tiny import ATTACK_SETS, SETS

TINY = [word for item in (*SETS, *ATTACK_SETS) for word in ("--set", item)]
ONE = [
    "run",
    "--attack",
    "gm",
    "--defense",
    "none",
    "--only",
    "--trials",
    "1",
    "--tracking",
    "none",
    "--jobs",
    "1",
    *TINY,
]


def test_more_victims_reuse_records_and_poisons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path), "--json"]
    assert main([*ONE, *out]) == 0
    (first,) = json.loads(capsys.readouterr().out)
    assert main([*ONE, *out, "--victims", "3"]) == 0
    captured = capsys.readouterr()
    again, second, third = json.loads(captured.out)
    assert "2 of 3 victims to run" in captured.err and "1 x 3" in captured.err
    assert again["cached"] and comparable(again) == comparable(first)
    assert [record["victim"] for record in (again, second, third)] == [0, 1, 2]
    assert second["seeds"]["victim"] == derive(0, "victim", 0, 1) and again["seeds"]["victim"] == derive(0, "victim", 0)
    assert len({record["cell"] for record in (again, second, third)}) == 1
    assert len({record["poisons"]["key"] for record in (again, second, third)}) == 1
    assert second["reused"]["poisons"] and second["history"] != first["history"] != third["history"]


def test_the_first_victim_has_the_key_of_a_single_one() -> None:
    single, double = (prepare("quick", [*SETS, "trials=1", f"victims={count}"], only=True) for count in (1, 2))
    (key,), keys = (list(plan.victims(Path("unused"))) for plan in (single, double))
    assert keys[0] == key and len(keys) == 2
    cell = double.cells[0]
    expected = [identities(cell.study).record(cell.attack, cell.defense, 0, victim)["key"] for victim in (0, 1)]
    assert keys == expected


@pytest.mark.parametrize("count", [0, 65])
def test_numbers_out_of_bounds_are_refused(count: int) -> None:
    with pytest.raises(BadInput, match="victims"):
        prepare("quick", [f"victims={count}"])
    with pytest.raises(BadInput, match="victims"):
        requests(victims=count)

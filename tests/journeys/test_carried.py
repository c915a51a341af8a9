"""A run that is killed, carried to another folder as one file, and goes on there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from bench.authoring.tiny import Killed
from bench.cli import main
from bench.execution import runner
from bench.execution.engines.local import Local
from bench.storage import making
from bench.storage.archive import pack, unpack
from bench.storage.records import comparable
from bench.storage.store import Made
from tests.aftermath import RUN, records
from tests.kills import Kills
from tests.plans import prepare
from tests.tiny import ATTACK_SETS, SETS

EVERY = 40  # checkpoints, one a step, between kills


def test_it_ends_with_the_same_bits_and_makes_nothing_again(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed again and again, each time carried to a new folder: in trainings, in craftings and between them."""
    plan = prepare("quick", [*SETS, *ATTACK_SETS], attack="gm", defenses=["friends-b"])
    written: list[str] = []
    write = making.Making.write

    def until_killed(self: making.Making, name: str, made: Made) -> None:
        write(self, name, made)
        written.append(name)
        if len(written) % EVERY == 0:
            raise Killed

    monkeypatch.setattr(making.Making, "write", until_killed)
    monkeypatch.setattr(making, "INTERVAL", 0.0)
    said: list[str] = []
    for number in range(100):
        out = tmp_path / str(number)
        before = stamps(out)
        with contextlib.suppress(Killed):
            found = runner.execute(plan, out, Local(1, quiet=True), said.append, lambda record: None)
            break
        assert before.items() <= stamps(out).items()
        pack(out, tmp_path / "it.tar", said.append)
        unpack(tmp_path / "it.tar", tmp_path / str(number + 1), said.append)
    assert before.items() <= stamps(out).items() and number > 3
    assert sum("goes on where it was killed" in line for line in said) > number / 2
    assert {record["key"]: comparable(record) for record in found} == records(undisturbed)


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    """Of every finished file that is carried: one that is made again has others."""
    files = [*out.glob("records/*/*/*/*.json"), *out.glob("store/[!c]*/*/*.safetensors")]
    return {path.relative_to(out).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


@pytest.mark.slow
def test_a_killed_command_goes_on_elsewhere(undisturbed: Path, tmp_path: Path) -> None:
    here, there, archive, kills = tmp_path / "here", tmp_path / "there", str(tmp_path / "it"), Kills(tmp_path / "tmp")
    kills.temporary.mkdir()
    run = (*RUN, "--jobs", "2", "--tracking", "none", "--out")
    assert kills.kill(lambda _: next(here.glob("records/*/*/*/*.json"), None) is not None, *run, str(here)) is not None
    assert main(["pack", str(here), archive]) == 0 and main(["unpack", archive, str(there)]) == 0
    before = stamps(there)
    assert before and len(records(there)) < len(records(undisturbed))
    kills.finish(*run, str(there))
    assert before.items() <= stamps(there).items() and records(there) == records(undisturbed)
    assert not kills.left(there) and os.listdir(there / "store")

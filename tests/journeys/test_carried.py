"""Sweeps for a borrowed card, on a network and images that are many times smaller: stopped, carried elsewhere as one
file, gone on with there, and carried back."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.api.work import requests
from bench.cli import main
from bench.execution import runner
from bench.execution.engines.local import Local
from bench.execution.plan import plan
from bench.storage import making
from bench.storage.archive import pack, unpack
from bench.storage.records import comparable
from bench.storage.store import Made
from tests.aftermath import records, start, wait_for
from tests.folders import write_folder
from tests.kills import Kills

PROTOCOL = """
name = "tiny"
model = "lenet"
dataset.name = "folder:{images}"
public_dataset.name = "folder:{images}"
train = {{ epochs = 3, batch = 20, lr = 0.02, augment = "bilinear", shift = 2 }}
threat.budget = 0.1
attack.gm = {{ steps = 3, restarts = 1 }}
attack.sleeper = {{ steps = 2 }}
attack.metapoison = {{ steps = 2, ages = [1, 2] }}
"""
EVERY = 6  # checkpoints, one a step, between interrupts


@pytest.fixture(scope="module")
def protocol(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a protocol that takes the place of those of a sweep."""
    folder = tmp_path_factory.mktemp("protocol")
    images = write_folder(folder / "images", train=20, test=6, size=16)
    (folder / "tiny.toml").write_text(PROTOCOL.format(images=images))
    return str(folder / "tiny.toml")


def test_what_is_interrupted_again_and_again_and_carried_each_time_ends_with_the_same_bits(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In trainings, in craftings and between them; and nothing that is finished is made again."""

    def execute(out: Path) -> dict[str, object]:
        planned = plan(requests("gpu-friends", protocols=(protocol,), trials=1)[:1])  # anew: a study remembers networks
        found = runner.execute(planned, out, Local(1, quiet=True), said.append, lambda record: None)
        return {record["key"]: comparable(record) for record in found}

    said: list[str] = []
    monkeypatch.setattr(making, "INTERVAL", 0.0)
    undisturbed = execute(tmp_path / "undisturbed")
    monkeypatch.setattr(making.Making, "write", interrupting(making.Making.write))
    for number in range(40):
        out = tmp_path / str(number)
        before = stamps(out)
        with contextlib.suppress(KeyboardInterrupt):
            found = execute(out)
            break
        assert before.items() <= stamps(out).items()
        pack(out, tmp_path / "it.tar", said.append)
        unpack(tmp_path / "it.tar", tmp_path / str(number + 1), said.append)
    assert before.items() <= stamps(out).items() and number > 3
    assert sum("goes on where it was killed" in line for line in said) > number / 2
    assert found == undisturbed and {name for _, _, name in cells(out)} == {"none", "friends-b"}


def interrupting(write: Callable[..., None]) -> Callable[..., None]:
    """`write` of `Making`, with Ctrl-C after every few checkpoints."""
    written: list[str] = []

    def until_interrupted(self: making.Making, name: str, made: Made) -> None:
        write(self, name, made)
        written.append(name)
        if len(written) % EVERY == 0:
            raise KeyboardInterrupt

    return until_interrupted


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    """Of every finished file that is carried: one that is made again has others."""
    files = [*out.glob("records/*/*/*/*.json"), *out.glob("store/[!c]*/*/*.safetensors")]
    return {path.relative_to(out).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def cells(out: Path) -> set[tuple[int, str, str]]:
    return {(record["trial"], record["attack"], record["defense"]) for record in records(out).values()}


@pytest.mark.slow
def test_a_rehearsal_with_commands(protocol: str, tmp_path: Path) -> None:
    """The whole of gpu-friends: killed here, interrupted there, finished there, carried back. What was first is a whole
    comparison, and nothing that came with the archive is made again."""
    here, there, archive, kills = tmp_path / "here", tmp_path / "there", str(tmp_path / "it"), Kills(tmp_path / "tmp")
    kills.temporary.mkdir()
    sweep = ("sweep", "gpu-friends", "--protocol", protocol, "--trials", "2", "--jobs", "1", "--tracking", "none")
    assert kills.kill(lambda _: len(cells(here)) == 2, *sweep, "--out", str(here)) is not None
    assert cells(here) == {(0, "gm", "none"), (0, "gm", "friends-b")}
    assert main(["pack", str(here), archive]) == 0 and main(["unpack", archive, str(there)]) == 0
    before = stamps(there)
    process = start(*sweep, "--out", str(there))
    wait_for(lambda: len(cells(there)) > 4, process)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1].endswith("the same command goes on where this one stopped\n")
    assert {(trial, "gm", defense) for trial in (0, 1) for defense in ("none", "friends-b")} < cells(there)
    kills.finish(*sweep, "--out", str(there))
    assert before.items() <= stamps(there).items()
    assert main(["pack", str(there), archive]) == 0 and main(["unpack", archive, str(here)]) == 0
    assert not list(here.glob("store/checkpoints/*/*")) and not kills.left(here)
    before = stamps(here)
    kills.finish(*sweep, "--out", str(here))
    assert stamps(here) == before
    kills.finish(*sweep, "--out", str(tmp_path / "undisturbed"))
    assert records(here) == records(there) == records(tmp_path / "undisturbed")

"""SIGKILL at random moments: of a tracked run with all that it started, of a first tracking, and of long trainings.

    python benchmarks/kill_storm.py [--kills 100] [--first 30] [--long 20] [--seed 0]

A run is killed up to some seconds after a stage of it has begun, Python's start and tracking included (a moment that
may be past its end), and started again until one ends by itself; then its output folder is checked and a new one begun.
Its records must equal those of a run that nobody killed, and after `sync` MLflow's database opens and is in step with
them. After every command that was not killed nothing may be left in the temporary directory, in /dev/shm or in
`scratch/` under the output folder; that command is `sync` after one kill in four, and else the run. A first tracking
(`sync` of all records into a file that is not there yet) is killed once; the next `sync` must bring the store in step.

Long trainings are three victims side by side, each of over two minutes, which are killed again and again until there
have been so many kills. Records must equal those of undisturbed victims; what a kill costs is the age of the oldest of
the last checkpoints at that moment, at most their interval and the moment that one is late.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench.storage.making import INTERVAL  # noqa: E402
from bench.storage.records import Records  # noqa: E402
from tests.aftermath import RUN, assert_in_step, records  # noqa: E402
from tests.kills import SHARED, STAGES, Kills, after, stage  # noqa: E402

ONCE = ("--trials", "1", "--jobs", "3", "--tracking", "none")
LONG = ("run", "--attack", "random-noise", "--defense", "friends-b", *ONCE)
LEAST = 120.0  # seconds of a long training
LATE = 10.0  # seconds; friendly noise is made between two steps
LATEST = 0.2  # of a kill after a stage has begun, in times of a whole tracked run
SYNC = 0.25  # share of kills after which the next command is `sync`


def assert_in_order(kills: Kills, out: Path) -> None:
    kills.finish("sync", "--out", str(out))
    assert_in_step(out, f"sqlite:///{out}/mlflow.db")
    assert not kills.left(out), kills.left(out)
    assert [path.name for path in out.iterdir() if ".tmp" in path.name] == []


class Storm:
    """Counts: kills by stage, output folders that were finished, kills followed by `sync`, and what kills left."""

    def __init__(self, kills: Kills, undisturbed: Path, longest: float, chance: random.Random) -> None:
        self.kills, self.wanted, self.longest, self.chance = kills, records(undisturbed), longest, chance
        self.stages: Counter[str] = Counter()
        self.folders = self.synced = 0
        self.most: Counter[str] = Counter()

    def folder(self, out: Path, number: int) -> None:
        """Kill runs on one output folder until one ends by itself or there have been so many kills in all."""
        run = (*RUN, "--out", str(out), "--jobs", "2")
        while self.stages.total() < number:
            said = self.kills.kill(self._moment(out), *run)
            if said is None:
                break
            self.stages[stage(said, out, len(self.wanted))] += 1
            self._count(out)
            if self.chance.random() < SYNC and records(out):
                assert_in_order(self.kills, out)
                self.synced += 1
        else:
            self.kills.finish(*run)
        assert not self.kills.left(out), self.kills.left(out)
        assert records(out) == self.wanted, "records differ"
        assert_in_order(self.kills, out)
        self.folders += 1

    def _moment(self, out: Path) -> Callable[[str], bool]:
        """Of stages, so that kills fall into all of them however busy the machine is."""
        first = self.chance.randrange(len(STAGES))
        trials = len(self.wanted)
        return after(
            self.chance.uniform(0.0, self.longest), lambda said: STAGES.index(stage(said, out, trials)) >= first
        )

    def _count(self, out: Path) -> None:
        """The most that lay there after a kill, what earlier kills left included."""
        folders = {SHARED: "/dev/shm", self.kills.temporary: "temporary directory", out / "scratch": "scratch"}
        self.most |= Counter(folders[path.parent] for path in self.kills.left(out))

    def __str__(self) -> str:
        where = ", ".join(f"{name} {self.stages[name]}" for name in STAGES)
        most = ", ".join(f"{name} {count}" for name, count in self.most.items())
        return (
            f"{self.stages.total()} kills ({where}); {self.folders} folders, each ended by a run that nobody killed; "
            f"`sync` right after {self.synced} kills; most left before the next command: {most or 'nothing'}"
        )


def first_tracking(kills: Kills, folder: Path, undisturbed: Path, number: int, chance: random.Random) -> int:
    """How many of the kills came in time."""
    hit = 0
    for index in range(number):
        out = shutil.copytree(undisturbed, folder / f"first-{index}")
        hit += kills.kill(after(chance.uniform(1.0, 5.0)), "sync", "--out", str(out)) is not None
        assert_in_order(kills, out)
        shutil.rmtree(out)
    return hit


def long_trainings(kills: Kills, folder: Path, number: int, epochs: int, chance: random.Random) -> str:
    """What was killed and what it cost, in words."""
    run = (*LONG, "--set", f"train.epochs={epochs}", "--out")
    began = time.monotonic()
    kills.finish(*run, str(folder / "calm"))
    calm = time.monotonic() - began
    wanted = records(folder / "calm")
    shortest = min(record["seconds"]["train"] for record in Records(folder / "calm" / "records").all())
    assert shortest > LEAST, f"a victim takes {shortest:.0f} s only; fix: --epochs"
    done, folders, ages, busy = 0, 0, [], 0.0
    while done < number:
        out = folder / f"long-{folders}"
        while True:
            latest = chance.uniform(10.0, 60.0) if done < number else float("inf")
            began = time.monotonic()
            said = kills.kill(after(latest, lambda said: "\nto do: " in said), *run, str(out))
            busy += time.monotonic() - began
            if said is None:
                break
            done += 1
            of_this = [age for age in _ages(out) if age < latest]  # others are of what it did not take up
            ages += of_this
            print(f"kill {done}: {len(records(out))} records; checkpoints of {of_this} s", flush=True)
        assert records(out) == wanted, "records differ"
        assert not list((out / "store" / "checkpoints").rglob("*.safetensors")), "a checkpoint stays"
        folders += 1
    assert max(ages) < INTERVAL + LATE, f"{max(ages):.1f} s were lost"
    return (
        f"{done} kills in {folders} runs of three victims of {shortest:.0f} s or more: records equal; at most "
        f"{max(ages):.1f} s since the last checkpoint; {busy / folders:.0f} s a run, {calm:.0f} s undisturbed"
    )


def _ages(out: Path) -> list[float]:
    """Seconds since the last checkpoint of each work that has one."""
    last: dict[str, float] = {}
    for path in (out / "store" / "checkpoints").rglob("[!.]*.safetensors"):
        key = path.name.split("-")[0]
        last[key] = max(last.get(key, 0.0), path.stat().st_mtime)
    return [round(time.time() - written, 1) for written in last.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--first", type=int, default=30)
    parser.add_argument("--long", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=300, help="of a long training")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        folder, kills = Path(place), Kills(Path(place) / "tmp")
        kills.temporary.mkdir()
        os.environ["TMPDIR"] = str(kills.temporary)
        if options.long:
            print(long_trainings(kills, folder, options.long, options.epochs, chance), flush=True)
        undisturbed, tracked = folder / "undisturbed", folder / "tracked"
        kills.finish(*RUN, "--out", str(undisturbed), "--jobs", "2", "--tracking", "none")
        if options.first:
            hit = first_tracking(kills, folder, undisturbed, options.first, chance)
            print(f"first tracking: {options.first} kills, {hit} in time: every store opens and is in step", flush=True)
        if options.kills:
            start = time.monotonic()
            kills.finish(*RUN, "--out", str(tracked), "--jobs", "2")
            whole = time.monotonic() - start
            print(f"a whole tracked run: {whole:.1f} s", flush=True)
            storm = Storm(kills, undisturbed, LATEST * whole, chance)
            while storm.stages.total() < options.kills:
                out = folder / f"out-{storm.folders}"
                storm.folder(out, options.kills)
                shutil.rmtree(out)
                print(f"{storm} ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()

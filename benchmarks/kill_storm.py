"""SIGKILL at random moments: of a tracked run with all that it started, and of a first tracking.

    python benchmarks/kill_storm.py [--kills 100] [--first 30] [--seed 0]

A run is started again after each kill until it ends by itself; its records must then equal those of a run that nobody
killed, MLflow must be in step with them, and after the next command nothing may be left in the temporary directory, in
/dev/shm or in `scratch/` under the output folder. A first tracking (`sync` of all records into a file that is not there
yet) is killed once; the next `sync` must bring the store in step.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.aftermath import RUN, assert_in_step, assert_nobody_left, records, start  # noqa: E402

SHARED = Path("/dev/shm")
STARTED: set[int] = set()  # process numbers of all commands


def call(*arguments: str, within: float = 600.0) -> None:
    process = start(*arguments)
    STARTED.add(process.pid)
    said = process.communicate(timeout=within)
    assert process.returncode == 0, said


def kill_after(seconds: float, *arguments: str) -> bool:
    """Whether the command was killed; False: it had ended before."""
    process = start(*arguments)
    STARTED.add(process.pid)
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.005)
    if process.poll() is not None:
        assert process.returncode == 0, process.communicate()
        return False
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert_nobody_left(process.pid)
    return True


def shared_memory() -> list[Path]:
    return [path for pid in STARTED for path in SHARED.glob(f"*[-_]{pid}[-_]*")]


def left_behind(out: Path) -> list[str]:
    temporary = Path(os.environ["TMPDIR"])
    found = [path for path in temporary.iterdir() if not path.name.startswith("torchinductor")]
    scratch = [out / "scratch"] if (out / "scratch").exists() else []
    return [str(path) for path in (*found, *shared_memory(), *scratch)]


def storm(folder: Path, undisturbed: Path, kills: int, chance: random.Random) -> tuple[int, int]:
    """How many runs ended by themselves between the kills, and the most that a kill left in /dev/shm."""
    wanted = records(undisturbed)
    done, runs, most = 0, 0, 0
    while done < kills:
        out = folder / f"out-{runs}"
        while done < kills and kill_after(chance.uniform(1.0, 9.0), *RUN, "--out", str(out), "--jobs", "2"):
            done += 1
            most = max(most, len(shared_memory()))
        call(*RUN, "--out", str(out), "--jobs", "2")
        call("sync", "--out", str(out))
        assert records(out) == wanted, "records differ"
        assert_in_step(out, f"sqlite:///{out}/mlflow.db")
        assert not left_behind(out), left_behind(out)
        runs += 1
        print(f"{done} kills, {runs} runs in order", flush=True)
        shutil.rmtree(out)
    return runs, most


def first_tracking(folder: Path, undisturbed: Path, kills: int, chance: random.Random) -> int:
    """How many of the kills came in time."""
    hit = 0
    for number in range(kills):
        out = shutil.copytree(undisturbed, folder / f"first-{number}")
        hit += kill_after(chance.uniform(1.0, 5.0), "sync", "--out", str(out))
        call("sync", "--out", str(out))
        assert_in_step(out, f"sqlite:///{out}/mlflow.db")
        assert not left_behind(out), left_behind(out)
        assert [path.name for path in out.iterdir() if ".tmp" in path.name] == []
        shutil.rmtree(out)
    return hit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--first", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        folder, temporary = Path(place), Path(place) / "tmp"
        temporary.mkdir()
        os.environ["TMPDIR"] = str(temporary)
        undisturbed = folder / "undisturbed"
        call(*RUN, "--out", str(undisturbed), "--jobs", "2", "--tracking", "none")
        hit = first_tracking(folder, undisturbed, options.first, chance)
        print(f"first tracking: {options.first} kills, {hit} in time: every store opens and is in step", flush=True)
        if options.kills:
            runs, most = storm(folder, undisturbed, options.kills, chance)
            print(
                f"runs: {options.kills} kills; {runs} runs end with the records of one that nobody killed; nothing left"
            )
            print(f"entries in /dev/shm right after a kill: up to {most}")


if __name__ == "__main__":
    main()

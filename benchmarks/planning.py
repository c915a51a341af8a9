"""What a plan costs: `sweep --plan` of 10,000 cells (20,000 victims), in one block and in a hundred, as CPU seconds and
memory of the whole command, Python's start included.

    python benchmarks/planning.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def sweep_file(blocks: int) -> str:
    """10,000 cells: 100 strengths of the defense, against 100 attacks or in 100 blocks with a learning rate each."""
    defenses = ", ".join(f'"friends-b[mu={mu}]"' for mu in range(1, 101 if blocks == 1 else 99))
    attacks = ", ".join(f'"gm[steps={steps}]"' for steps in range(1, 101)) if blocks == 1 else '"gm"'
    text = f'protocols = ["quick"]\ntrials = 2\nattacks = [{attacks}]\ndefenses = [{defenses}]\n'
    if blocks > 1:  # each with the control and the undefended cell
        text += "".join(f'[[block]]\nset = ["train.lr={number / 1000}"]\n' for number in range(1, blocks + 1))
    return text


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for blocks in (1, 100):
            file = Path(folder, f"{blocks}.toml")
            file.write_text(sweep_file(blocks))
            command = [sys.executable, "-m", "bench", "sweep", str(file), "--plan", "--out", f"{folder}/out"]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            assert status == 0, f"exit {status}"
            seconds = usage.ru_utime + usage.ru_stime
            print(f"{blocks} blocks: {seconds:.1f} CPU s, {usage.ru_maxrss / 2**10:.0f} MiB")


if __name__ == "__main__":
    main()

"""Lists of trials in the form that poisoning-benchmark publishes."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

from bench.exchange.setups import KEYS
from bench.science.threat import Trial


def write_setups(path: Path, trials: Sequence[Trial]) -> None:
    """Trials with one target each. Python numbers only, so that any numpy can read it."""
    values = [(t.source_class, int(t.target_ids[0]), t.target_class, t.base_ids.tolist()) for t in trials]
    path.write_bytes(pickle.dumps([dict(zip(KEYS, each, strict=True)) for each in values], 4))

"""Poisons in and out: the file formats of published attacks and benchmarks, read without trust in the files.

`formats` reads and writes trial folders, `importing` checks what was read against a data set, `setups` holds the lists
of trials that benchmarks publish.
"""

from __future__ import annotations

from bench.foundation.registry import announce

announce(
    "format",
    {
        "native": ("bench.exchange.native:FORMAT", "our own: safetensors with checksum, trial and trigger"),
        "benchmark": ("bench.exchange.pickled:BENCHMARK", "pickles of poisoning-benchmark: poisons and target"),
        "friendly-noise": ("bench.exchange.pickled:FRIENDLY_NOISE", "pickles of FRIENDS and EPIC: poisons and source"),
        "packed": ("bench.exchange.packed:FORMAT", "Witches' Brew `packed`: torch file of changes; no target"),
        "numpy": ("bench.exchange.numpy_arrays:FORMAT", "Witches' Brew `numpy`: the poisoned training set; no target"),
        "metapoison": ("bench.exchange.metapoison:FORMAT", "MetaPoison: the poisoned training set and the target"),
    },
)

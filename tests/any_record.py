"""What may have become of a record: other values, types and sizes in the places that views read, and elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from bench.storage.record import Record, parse, sealed
from tests.records import cell, digest, several

BATCH = 20
"""Records that are shown together: reading a record takes microseconds, a page of them a tenth of a second."""

JUDGED = {"success": 0.0, "clean_accuracy": 0.5, "target_predictions": [0], "target_margin": -1.5, "backdoor": None}
BACKDOOR = {"asr_all": 0.5, "asr_excluding": 0.5, "asr_conditional": None, "base_rate": 0.1, "n": 10}
EVERYTHING: dict[str, Any] = {
    "error": None, "outcome": {**JUDGED, "backdoor": BACKDOOR}, "variants": {"denoised": JUDGED},
    "history": [{"loss": 1.0, "accuracy": 0.5, "samples": 10.0}] * 2, "seeds": {"victim": 1, "surrogates": [1, 2]},
    "notes": {"strip": {"threshold": 0.1, "flagged": [1]}}, "reused": {"poisons": True, "surrogates": False},
    "surrogates": {"keys": ["k"]}, "external": {"opacus": "1.5"}, "places": {"dataset": "d"}, "knowledge": ["eps"],
    "adapted_to": ["noise-b"], "memory_peak_mib": 1.5, "poisons__losses": [[1.0, 0.5], [1.0, 0.2]],
    "poisons__final_losses": [0.5, 0.2], "poisons__retrained_at": [1], "poisons__coefficients_used": [1],
    "seconds__train.networks": 1.0, "seconds__craft.friendly noise": 1.0, "environment__threads": 1,
    "environment__capability": "AVX2", "settings__protocol__dataset": {"name": "cifar10", "per_class": 100},
    "settings__attack": {"steps": 250, "ages": [1, 2]}, "settings__defense": {"mu": 16, "parts": {"noise": "uniform"}},
    "filter__dropped": 10,
}  # fmt: skip
SOUND: list[Record] = [
    *cell("gm", "none", [1.0, 0.0], **EVERYTHING), *cell("gm", "noise-b", [0.0, 0.5], **EVERYTHING),
    *several("gm", "mixup", [[1.0, 0.0], [0.0, 0.0]], **EVERYTHING), *cell("none", "none", [0.0]),
    *cell("gm", "friends-b", [None], error="RuntimeError: no memory", poisons={}),
]  # fmt: skip
DEEP = 100
WORDS = ["", "nan", "inf", "-0", "1e999", "true", "None", "x" * 7000, "'\"<b>&|`[x](y)", "\x00\n\x1b[31m",
         "\U0001f600",         "../../x", "a.b", "a/b", "cifar10", "none", "folder:",
         "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00",
         "2026-01-01T00:00:00+00:00:00.5", "2026-01-01", "done", "failed", digest("other")]  # fmt: skip
NUMBERS = [0, -1, 1, 2, 255, 2**31, 2**53 + 1, -(2**63), 2**63, 2**64, 10**30, 10**400, 0.0, -0.0, 0.5, -0.5, 1.5,
           5e-324,           1e17, 1e300, -1e300, 1.7976931348623157e308]  # fmt: skip
PLAIN: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, *NUMBERS, *WORDS, [], {}, [[]], [{}], {"": {}}, {"a": 1, "a.b": 2}]
)
VALUES = PLAIN | st.recursive(
    PLAIN | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=8), inner),
    max_leaves=6,
) | st.builds(lambda value, wrap: [nest := value, *[nest := wrap(nest) for _ in range(DEEP)]][-1],
              PLAIN, st.sampled_from([lambda inner: [inner], lambda inner: {"a": inner}]))  # fmt: skip


def cases(each: int = 1, ci: int = 200) -> Any:
    """How often a property is tried: `BENCH_CASES` records, `ci` of them where nothing is said; each: at once."""
    count = max(int(os.environ.get("BENCH_CASES", ci)) // each, 1)
    shrink = [Phase.shrink] if "BENCH_SHRINK" in os.environ else []  # takes minutes where many records are shown
    phases = [Phase.explicit, Phase.generate, *shrink]
    return settings(max_examples=count, derandomize=True, deadline=None, database=None, phases=phases,
                    suppress_health_check=list(HealthCheck))  # fmt: skip


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for name, inner in items for place in [(*above, name), *places(inner, (*above, name))]]


PLACES = list(dict.fromkeys(place for record in SOUND for place in places(record)))
CHANGES = st.lists(
    st.tuples(st.sampled_from(PLACES), st.none() | st.tuples(VALUES), st.booleans()), min_size=1, max_size=3
)


def put(record: Any, place: Sequence[Any], value: tuple[Any] | None, beside: bool) -> None:
    """Another value there, or none at all; beside: under a name of its own, where there are names. Nothing where an
    earlier change took the place away."""
    *above, last = place
    for name in above:
        try:
            record = record[name]
        except (KeyError, IndexError, TypeError):
            return
    if isinstance(record, dict):
        if value is None:
            record.pop(last, None)
        else:
            record[f"{last}.x" if beside else last] = value[0]
    elif isinstance(record, list) and value and isinstance(last, int) and last < len(record):
        record[last] = value[0]


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """The text of a record that was changed in up to three places, with a digest that fits or with none."""
    record = json.loads(sealed(draw(st.sampled_from(SOUND))))
    del record["digest"]
    for change in draw(CHANGES):
        put(record, *change)
    return sealed(record) if draw(st.booleans()) else json.dumps(record).encode()


def accepted(texts: Sequence[bytes]) -> list[bytes]:
    """Those that are records."""
    return [text for text in texts if _is_record(text)]


def _is_record(text: bytes) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True


batches = st.lists(mutants(), min_size=BATCH, max_size=BATCH).map(accepted)
"""Records that the reader accepts, out of `BATCH` mutants."""

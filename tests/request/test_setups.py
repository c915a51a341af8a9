"""Lists of trials: what tells one from another."""

from __future__ import annotations

from pathlib import Path

from bench.request.setups import TrialList


def test_the_digest_is_that_of_the_content_and_not_of_the_place(tmp_path: Path) -> None:
    first, same, other = tmp_path / "setups.pickle", tmp_path / "copy.pickle", tmp_path / "other" / "setups.pickle"
    other.parent.mkdir()
    first.write_bytes(b"one list")
    same.write_bytes(b"one list")
    other.write_bytes(b"another list")
    digests = [TrialList.at(path).digest for path in (first, same, other)]
    assert digests[0] == digests[1] != digests[2]

"""MLflow brought in step with the records of an output folder. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.foundation.errors import BadInput
from bench.foundation.files import make_folder
from bench.foundation.progress import say
from bench.foundation.scratch import clear_dead
from bench.storage import poison_images
from bench.storage.record import Record
from bench.storage.records import read
from bench.views.mlflow import sync as mlflow
from bench.views.mlflow.server import resolve_uri


def sync(out: Path, tracking: str | None, files: Sequence[Path] = ()) -> tuple[str, mlflow.SyncReport]:
    """Log the records that MLflow lacks, of `files` with one per line, or without any those under `out`; its URI, and
    what was logged. BadInput where there is nothing."""
    uri = resolve_uri(tracking, out)
    if uri is None:
        raise BadInput("sync: tracking is switched off (none); give --tracking URI")
    if not files and not (out / "records").is_dir():
        raise BadInput(f"sync: no records under '{out}'; give --out DIR or --records FILE")
    records = read(None if files else out / "records", files, say)
    if files and not records:
        where = ", ".join(f"'{file}'" for file in files)
        raise BadInput(f"sync: no records in {where}; fix: give files with one record per line")
    make_folder(out)
    clear_dead(out)

    def image(record: Record) -> bytes | None:
        return poison_images.read(out, record["poisons"].get("key", "none"), say)

    return uri, mlflow.sync(records, uri, out, image)

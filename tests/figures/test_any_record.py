"""Whatever the reader takes for a record, the figures of records are drawn from, or say in one line why not."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from hypothesis import given

from bench.figures import canvas, matching_loss, poisons, scatter
from bench.figures.request import FigureRequest, dataset_of
from bench.foundation.errors import BadInput
from bench.request.request import Request
from bench.storage.record import parse, sealed
from tests.any_record import SOUND, batches, cases


def drawn(texts: list[bytes], render: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        path.write_bytes(b"\n".join([*texts, *(sealed(record).rstrip() for record in SOUND[1:])]))
        for protocol in {parse(text)["protocol"] for text in texts} | {SOUND[0]["protocol"]}:
            request = FigureRequest(Request(protocols=(protocol,)), Path(folder), path)
            for module in (matching_loss, poisons, scatter):
                with contextlib.suppress(BadInput):
                    plate = module.measure(request)
                    canvas.as_csv(plate).encode()
                    if render:
                        assert canvas.render(plate, module.draw, ".svg")


@given(batches)
@cases(each=20, ci=40)
def test_numbers_of_figures(texts: list[bytes]) -> None:
    drawn(texts, render=False)
    for text in texts:
        with contextlib.suppress(BadInput):
            dataset_of(parse(text), Request())


@given(batches)
@cases(each=200, ci=200)
def test_figures(texts: list[bytes]) -> None:
    drawn(texts, render=True)

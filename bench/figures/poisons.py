"""Base images, poisons, and their difference amplified, of one attack and trial (from records and store)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from bench.figures.canvas import WIDTH
from bench.figures.request import FigureRequest, Plate, Record, Row, dataset_of, read
from bench.foundation.errors import BadInput
from bench.foundation.progress import say
from bench.science.poisons import Poisons
from bench.storage.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 6  # poisons, the first ones


@dataclass(frozen=True)
class Trio:
    """base, poison: uint8 [m, 3, h, w], the shown ones; change: int [m, 3, h, w]; largest: change of a pixel among all
    poisons of the trial, levels of 255."""

    base: Tensor
    poison: Tensor
    change: Tensor
    largest: int


def measure(request: FigureRequest) -> Plate:
    """content: Trio; the table has a row for every poison of the trial, with its changes in levels of 255."""
    record = _chosen(request)
    key = record["poisons"].get("key")
    artefact = Store(request.out / "store", say).get("poisons", key) if key else None
    if artefact is None:
        raise BadInput(
            f"the poisons of {record['attack']} trial {record['trial']} are not in '{request.out / 'store'}'; "
            f"fix: --out DIR of the run that crafted them, or run it again"
        )
    poisons = Poisons.of_tensors(artefact.tensors, {})
    clean = dataset_of(record, request.asked).train
    base = clean.images[clean.rows_of(poisons.ids)]
    change = poisons.images.int() - base.int()
    sizes = change.abs().flatten(1)
    rows: list[Row] = [
        (sample, label, largest, mean)
        for sample, label, largest, mean in zip(
            poisons.ids.tolist(), poisons.labels.tolist(), sizes.amax(1).tolist(), sizes.float().mean(1).tolist(),
            strict=True,
        )
    ]  # fmt: skip
    trio = Trio(base[:SHOWN], poisons.images[:SHOWN], change[:SHOWN], max(int(sizes.max()), 1))
    n, shown = len(rows), len(trio.base)
    caption = (
        f"{record['protocol']}, {record['attack']}, trial {record['trial']}, seed {record['seed']}: {shown} of n = {n} "
        f"poisons, eps {record['poisons'].get('eps', '?')}/255; difference x {127 / trio.largest:.3g}"
    )
    size = (WIDTH, 0.4 + 3 * (WIDTH - 0.2) / max(shown, 4))
    return Plate(("id", "label", "largest_change", "mean_change"), rows, caption, trio, size)


def _chosen(request: FigureRequest) -> Record:
    """The last finished record with poisons of the attack and the trial (default: 0) that are asked for."""
    records = [record for record in read(request, with_data=True) if record["poisons"].get("n")]
    if not records:
        raise BadInput("these records hold no poisons: their attacks poison nothing")
    attacks = sorted({str(record["attack"]) for record in records})
    if len(attacks) > 1:
        raise BadInput(f"these are records of {', '.join(attacks)}; choose one with --attack")
    trials = sorted({int(record["trial"]) for record in records})
    trial = trials[0] if request.trial is None else request.trial
    return max((record for record in records if record["trial"] == trial), key=lambda record: record["finished"])


def draw(plate: Plate, figure: Figure) -> None:
    trio: Trio = plate.content
    amplified = (127 + trio.change * 127 / trio.largest).round().clamp(0, 255).byte()
    axes = figure.subplots(3, len(trio.base), squeeze=False)
    for line, label, images in zip(
        axes, ("base", "poison", "difference"), (trio.base, trio.poison, amplified), strict=True
    ):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(label)

"""Poisons out to other tools, and in from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.api.work import Work
from bench.exchange import formats
from bench.exchange.content import Content
from bench.exchange.files import new_folder
from bench.exchange.importing import interpret
from bench.execution.plan import prepare_study
from bench.foundation.errors import BadInput
from bench.foundation.progress import say
from bench.request.request import Request
from bench.science.study import Study


@dataclass(frozen=True)
class Exported:
    """What `export` wrote: of which attack, how many trials, and what a person should know about the format."""

    attack: str
    trials: int
    notes: tuple[str, ...]


def export(folder: Path, format: str, work: Work) -> Exported:
    """Write the poisons of the last attack of `work` as `folder`, which must not be there yet, with a sub-folder per
    trial; crafts what is missing. BadInput in one line."""
    formats.named(format)  # before anything is crafted
    cell = work.plan.cells[-1]
    if not cell.attack.make.poisons_data:
        raise BadInput(f"attack '{cell.attack.label}' poisons nothing, so there is nothing to export")
    with new_folder(folder) as temporary:
        notes: dict[str, None] = {}
        for poisons, trial in work.craft():
            inside = temporary / str(trial.index)
            notes |= dict.fromkeys(formats.write(inside, format, poisons, trial, cell.study.dataset))
    return Exported(cell.attack.label, len(cell.trials), tuple(notes))


def import_(
    source: Path, folder: Path, request: Request, format: str = "auto", setup: str | None = None, trigger: bool = False
) -> Iterator[str]:
    """Read another tool's poisons, check them against the request's protocol, and write them as `folder` in our own
    format; yields a line per trial on what was found. setup: which of the listed trials a single trial's files are.
    trigger: judge victims with the threat model's trigger. BadInput in one line."""
    study, _ = prepare_study(request, request.protocols[0])
    for line in study.summaries:
        say(line)
    trials = formats.read_any(source, format, study.dataset)
    if setup is not None:  # a single trial's files do not say which of a list they are
        if len(trials) != 1 or not setup.isascii() or not setup.isdigit():
            raise BadInput(f"--setup {setup}: one number, for a source that is a single trial")
        trials = {int(setup[:9]): next(iter(trials.values()))}
    with new_folder(folder) as temporary:
        for index, content in trials.items():
            yield _keep(temporary, index, content, study, trigger)


def _keep(folder: Path, index: int, content: Content, study: Study, trigger: bool) -> str:
    """Check one trial's poisons and write them; what was found, as a line."""
    lacks_target = not formats.named(content.format).holds_target
    trial = study.case(index).trial if lacks_target or study.listed is not None else None
    poisons, completed, report = interpret(content, study.dataset, index, study.protocol.threat.eps, trial)
    if trigger:
        if poisons.shown is not None:
            raise BadInput(f"--trigger: trial {index} brings its own images")
        poisons = dataclasses.replace(poisons, shown=study.triggered(completed))
    formats.write(folder / str(index), "native", poisons, completed, study.dataset)
    return f"trial {index}: {report.line()}" + ("; target drawn as the protocol does" if lacks_target else "")

"""Where figures come from: seeds, trials, precision, machine, revision, and the commands that make the records."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from commands_of import commands_of

from bench.request.protocol_file import protocol_names, read_preset
from bench.storage.record import Record
from bench.views.cells import by_cell


def provenance(records: Sequence[Record], files: Sequence[str]) -> str:
    """What a reader needs to judge the figures and to make them again."""
    cells = by_cell(records)
    every = [record for cell in cells for record in cell]
    numbers = sorted({len({record["trial"] for record in cell if record["status"] == "done"}) for cell in cells})
    each = "a cell and seed" if len({record["seed"] for record in every}) > 1 else "a cell"
    machines = [record["environment"] for record in every]
    parts = [
        _listed("seed", (record["seed"] for record in every)),
        f"{' to '.join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))} trials {each}{_failed(every)}",
        _listed("", (field_of(record, "settings.protocol.train.precision") for record in every)),
        _listed("", (machine.get("device_name") for machine in machines)),
        _listed("torch", (machine.get("torch") for machine in machines)),
        _listed("revision", (_short(record["revision"]) for record in every)),
    ]
    written = ", ".join(f"`{name}`" for name in files)
    told = f"{written}: {'; '.join(parts)}.{''.join(_notes(every))} To make the records again:"
    paragraph = textwrap.fill(told, 120, break_long_words=False, break_on_hyphens=False)
    return f"{paragraph}\n\n{indented(commands_of(every))}"


def indented(lines: Iterable[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)


def field_of(record: Any, path: str) -> Any:
    """The value at `outcome.backdoor.asr_all`; names may hold dots themselves; None where there is none."""
    if not path or not isinstance(record, dict):
        return None if path else record
    for name in sorted((name for name in record if f"{path}.".startswith(f"{name}.")), key=len, reverse=True):
        return field_of(record[name], path[len(name) + 1 :])
    return None


def _failed(records: Sequence[Record]) -> str:
    failed = sum(record["status"] != "done" for record in records)
    return f", {failed} victims failed" if failed else ""


def _notes(records: Sequence[Record]) -> Iterator[str]:
    versions = {record["protocol"]: field_of(record, "settings.protocol.version") for record in records}
    for protocol, version in versions.items():
        now = read_preset(protocol)[0].get("version", 1) if protocol in protocol_names() else version
        if version not in (None, now):
            yield f" Protocol {protocol} was version {version} then and is {now} now: the command says what differs."
    folders = {r["data"].get("fingerprint", "")[:12] for r in records if ":" in str(r["data"].get("name"))}
    if folders:
        yield f" Images of a folder (fingerprint {', '.join(sorted(folders))}): `--dataset folder:PATH`."


def _listed(what: str, values: Any) -> str:
    """`revisions 6be8175b, f8156a0b`, each once, as they come."""
    several = list(dict.fromkeys(map(str, values)))
    return f"{what}{'s' * (len(several) > 1 and what in ('seed', 'revision'))} {', '.join(several)}".strip()


def _short(revision: str | None) -> str:
    return revision[:8] + "+" * revision.endswith("+") if revision else "unknown"

"""Records as a leaderboard needs them, checked as strictly as whole ones: quick to read, and so small that 100,000 of
them fit into little memory. What trials have in common is kept once."""

from __future__ import annotations

import marshal
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any, NotRequired, cast, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from bench.storage.older import bring_settings_up_to_date
from bench.storage.parts import Count, Judged, Whole
from bench.storage.record import Record, Summary, as_written, finished, parse

KEPT = (
    *("key", "cell", "attack", "defense", "protocol", "trial", "victim", "seed", "status", "success", "clean_accuracy"),
    *("outcome", "filter", "draw", "poisons", "settings", "knowledge", "adapted_to", "data", "code", "revision"),
    *("environment", "seconds", "finished", "digest"),
)
ALIKE = (  # the records of a cell, or of a trial in all cells, tend to agree in these
    *("cell", "filter", "draw", "poisons", "settings", "knowledge", "adapted_to", "data", "code", "environment"),
)
_DESCRIPTION, _AFTER = b',"settings":{', b',"seconds":{'
"""All trials of a cell have the text between these in common."""

_OF_THE_OUTCOME = ("target_margin", "backdoor")
_CURVES = (b'"losses":[', b'"history":[')


class _Nothing(TypedDict):
    """An object of which nothing is kept."""


class _Filter(TypedDict, total=False):
    dropped: Count


class _Draw(TypedDict):
    target_ids: list[Whole]
    source_class: Whole
    target_class: Whole
    base_ids: NotRequired[list[int]]


_LESS: dict[str, Any] = {
    **dict.fromkeys(("notes", "surrogates", "external", "reused"), _Nothing),
    **{"filter": _Filter | None, "outcome": Judged | None, "draw": _Draw},
}
_FIELDS = get_type_hints(Summary, include_extras=True)
_PART: Any = TypeAdapter(TypedDict("_Part", {**_FIELDS, **_LESS}, total=False)).validator  # type: ignore[operator]
_required = itemgetter(*(name for name, kind in _FIELDS.items() if get_origin(kind) is not NotRequired))


class Standings:
    """From the text of a record, or a whole record, to the fields in `KEPT`. One for many records: it remembers what
    they have in common."""

    def __init__(self) -> None:
        self._descriptions: dict[bytes, dict[str, Any]] = {}
        self._values: dict[bytes, Any] = {}

    def parse(self, text: bytes) -> Record:
        """ValueError as of `record.parse`."""
        if as_written(text):
            try:
                return self._of_parts(text)
            except (ValidationError, LookupError):  # perhaps of an older version, which `parse` brings up to date
                pass
        return self.lighten(parse(text))

    def lighten(self, record: Mapping[str, Any]) -> Record:
        """record: checked and up to date."""
        fields = _PART.validate_python(record, strict=True)
        self._keep_once(fields, ALIKE)
        return _kept(fields)

    def _of_parts(self, text: bytes) -> Record:
        """Of text as it is written: what describes the cell is parsed once, curves are left out.

        Two texts of whole members, none of them in both, are those of one object with all. ValidationError or
        LookupError where these are none.
        """
        end = text.rfind(_AFTER)
        begin = text.rfind(_DESCRIPTION, 0, end)
        if not 0 < begin < end:
            raise LookupError
        description = self._descriptions.get(text[begin:end]) or self._described(text[begin:end])
        rest = text[:begin] + text[end:]
        if b"\\" not in rest:
            for curve in _CURVES:
                rest = _emptied(rest, curve)
        record = _PART.validate_json(rest, strict=True)
        if not description.keys().isdisjoint(record):
            raise LookupError
        self._keep_once(record, ("cell", "filter", "draw", "poisons"))
        record.update(description)
        record.setdefault("victim", 0)  # of older versions
        _required(record)
        return _kept(finished(record))

    def _described(self, text: bytes) -> dict[str, Any]:
        fields: dict[str, Any] = _PART.validate_json(b"{" + text[1:] + b"}", strict=True)
        bring_settings_up_to_date(fields["settings"], fields["environment"])
        self._keep_once(fields, ALIKE)
        self._descriptions[text] = fields
        return fields

    def _keep_once(self, fields: dict[str, Any], names: Iterable[str]) -> None:
        """An equal value that was read before takes the place of this one: 1 is no equal of 1.0, nor of true."""
        if draw := fields.get("draw"):
            draw.pop("base_ids", None)
        if outcome := fields.get("outcome"):
            fields["outcome"] = {name: value for name in _OF_THE_OUTCOME if (value := outcome.get(name)) is not None}
        for name in names:
            if value := fields.get(name):
                fields[name] = self._values.setdefault(marshal.dumps(value, 2), value)


def _kept(record: Mapping[str, Any]) -> Record:
    return cast("Record", {name: record.get(name) for name in KEPT})


def _emptied(text: bytes, curve: bytes) -> bytes:
    """The text with nothing in its array `curve`, or as it is.

    For JSON without a backslash: every quote is the beginning or the end of a string. The array ends no later than at
    the first `],"` or `]}`, unless there is white space. If it ends later, or that stands in a string, what we leave is
    no JSON: it has more brackets, or quotes, that close than that open.
    """
    begin = text.find(curve) + len(curve)
    if begin < len(curve):
        return text
    end = text.find(b"]", begin)
    while end >= 0 and text[end + 1 : end + 2] != b"}" and text[end + 1 : end + 3] != b',"':
        end = text.find(b"]", end + 1)
    items = text[begin:end]
    if end < 0 or b" " in items or b"\n" in items or b"\r" in items or b"\t" in items:
        return text
    return text[:begin] + text[end:]

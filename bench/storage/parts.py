"""The parts of a record, with the types of what views compute with; all else in them is left as it is."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Score = Annotated[float, Field(ge=-1e39, le=1e39)]  # beyond any of a network: a float32 ends before
Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]  # more would be no time, and their sum no number
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Name = Annotated[str, Field(min_length=1, max_length=500)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def _time(text: str) -> str:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None or not 1970 < time.year < 9999:  # it is compared and shown in other zones
        raise ValueError("a time without its zone, or of no year that a computer had")
    return text


Time = Annotated[str, AfterValidator(_time)]
_with_more = with_config(ConfigDict(extra="allow"))


def first_fault(error: ValidationError) -> str:
    """Where a value is not of its type, and why."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, fault["loc"]))
    return f"{where}: {fault['msg']}" if where else fault["msg"]


def checked_as(part: Any) -> AfterValidator:
    """Of a part that may have other entries: it is checked and kept as it is, in its order, by which views name it."""
    adapter: TypeAdapter[Any] = TypeAdapter(part)

    def check(value: Any) -> Any:
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            raise ValueError(first_fault(error)) from None
        return value

    return AfterValidator(check)


@_with_more
class Draw(TypedDict):
    target_ids: list[Whole]
    source_class: Whole
    target_class: Whole
    index: NotRequired[int]
    base_ids: NotRequired[list[int]]


class Amounts(TypedDict, total=False):
    """Of the poisons of a trial; a failed trial may have none."""

    key: Digest
    n: Count
    eps: Positive
    max_change: Positive
    final_losses: list[Any]
    retrained_at: list[Count]


class PoisonFigures(Amounts, total=False):
    """With what the attack tells of its crafting; attacks add entries of their own."""

    losses: list[Any]


@_with_more
class Rates(TypedDict, total=False):
    """Of a trigger."""

    asr_all: Share | None
    asr_excluding: Share | None
    asr_conditional: Share | None
    base_rate: Share | None


@_with_more
class Judged(TypedDict, total=False):
    """What a victim did, see `science.evaluation.Outcome`; the outcome that counts repeats the trial's figures."""

    target_margin: Score | None
    backdoor: Rates | None


@_with_more
class Variant(Judged):
    success: Share
    clean_accuracy: Share


@_with_more
class Threat(TypedDict, total=False):
    eps: Whole | Number  # 8 stays 8
    budget: Whole | Number | None


@_with_more
class NamedDataset(TypedDict):
    name: Any


@_with_more
class Protocol(TypedDict, total=False):
    threat: Threat
    dataset: NamedDataset


@with_config(ConfigDict(extra="forbid"))
class Settings(TypedDict, total=False):
    """Those of which views read more than the name and the text are named."""

    protocol: Protocol
    attack: dict[str, Any]
    defense: dict[str, Any]


@_with_more
class Environment(TypedDict, total=False):
    device: str | None
    device_name: str | None


@_with_more
class Dropped(TypedDict, total=False):
    dropped: Count


@_with_more
class Data(TypedDict, total=False):
    fingerprint: str
    train: Count


@_with_more
class Seeds(TypedDict, total=False):
    surrogates: list[int]

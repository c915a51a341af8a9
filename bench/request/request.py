"""What a user asks for, the same from the command line, a sweep file, a figure or Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from bench.foundation.settings import Settings, build
from bench.request.protocol_file import MOST_TRIALS, MOST_VICTIMS


class Request(Settings):
    """Every attack against every defense in every protocol. Attacks and defenses are written as in
    `bench.science.references`."""

    protocols: tuple[str, ...] = Field(("quick",), min_length=1, description="presets, or files")
    attacks: tuple[str, ...] = Field(("gm",), min_length=1, description="attacks, by name or file")
    defenses: tuple[str, ...] = Field(("none",), min_length=1, description="defenses; a+b composes them")
    trials: int | None = Field(None, ge=1, le=MOST_TRIALS, description="trials per cell (none: the protocol's)")
    victims: int | None = Field(None, ge=1, le=MOST_VICTIMS, description="victims per trial (none: the protocol's)")
    seed: int = Field(0, ge=-(2**63), lt=2**63, description="study seed")
    set: tuple[str, ...] = Field((), description="key=value, as of --set")
    only: bool = Field(False, description="without the undefended cells and the clean controls")
    order: Literal["longest", "trials"] = Field(
        "longest", description="of work: what takes longest first, or trial by trial, one request after another"
    )
    dataset: str | None = Field(None, description="another data set, such as folder:PATH")
    data: Path | None = Field(None, strict=False, description="where data sets look for their files")
    setups: Path | None = Field(None, strict=False, description="trials from a poison_setups pickle")
    setup: str | None = Field(None, description="which of the listed trials: N, or A..B")
    poisons: Path | None = Field(None, strict=False, description="imported poisons, instead of an attack")

    @model_validator(mode="after")
    def _one_list_of_trials(self) -> Request:
        if self.poisons is not None and self.setups is not None:
            raise ValueError("--poisons brings its own trials; fix: leave --setups out")
        return self

    def sets(self) -> list[str]:
        """The items of --set, with --trials and --victims among them."""
        counts = {"trials": self.trials, "victims": self.victims}
        return [*(f"{name}={count}" for name, count in counts.items() if count is not None), *self.set]

    def changed(self, **values: Any) -> Request:
        """The same with other values, checked again: BadInput where they do not go together."""
        return build(Request, {**{name: getattr(self, name) for name in self.model_fields_set}, **values}, "")

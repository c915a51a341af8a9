"""Lends functions of the bench to plug-ins without handing over what the functions know.

A closure can be opened: `services.fit.__closure__` would lead to the study, and from there to the target and the test
labels. What is lent here holds a number only; the function stays in a table of this module until the loan ends.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

_table: dict[int, Callable[..., Any]] = {}
_numbers = itertools.count()


class Lent:
    """A function of the bench, callable until its loan ends."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self.number not in _table:
            raise RuntimeError("a service of the bench was used after the trial that it was lent for")
        return _table[self.number](*arguments, **named)


@contextlib.contextmanager
def lent(*functions: Callable[..., Any]) -> Iterator[list[Lent]]:
    """Inside, the functions can be called through what is yielded."""
    numbers = [next(_numbers) for _ in functions]
    _table.update(zip(numbers, functions, strict=True))
    try:
        yield [Lent(number) for number in numbers]
    finally:
        for number in numbers:
            del _table[number]

"""No defense: the victim trains on the data as they are."""

from __future__ import annotations

from bench.plugin import Defense, register


@register("defense", "none")
class Undefended(Defense):
    """Undefended victim, against which every defense is compared. Assumes: nothing. Cost: none."""

"""No defense: the victim trains on what it is given."""

from __future__ import annotations

from bench.plugin import Defense, register


@register("defense", "none")
class Undefended(Defense):
    """Undefended victim, against which every defense is compared. Needs: nothing. Cost: nothing."""

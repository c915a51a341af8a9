"""What older versions wrote otherwise in a record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# What older versions did not write, with what then held.
_RENAMED = {"true_class": "source_class", "adversarial_class": "target_class"}
_LATER_SETTINGS = {"holdout": 0.05, "per_class": 0, "white_box": True, "pair": "", "eligible": "any"}  # of the threat
_LATER_FIELDS = {
    "victim": "0",
    **dict.fromkeys(("error", "outcome", "filter", "revision", "memory_peak_mib"), "null"),
    **dict.fromkeys(("history", "knowledge", "adapted_to"), "[]"),
    **dict.fromkeys(("variants", "seeds", "poisons", "surrogates", "notes", "external"), "{}"),
    **dict.fromkeys(("data", "code", "environment", "reused", "places"), "{}"),
}


def bring_up_to_date(record: dict[str, Any]) -> bool:
    """Fill in what an older version left out; whether there was anything. Values of the wrong kind are left for the
    check to find."""
    changed = _fill(record, {name: json.loads(value) for name, value in _LATER_FIELDS.items() if name not in record})
    changed |= _fill(record, {"started": record.get("finished")})
    draw, poisons = record.get("draw"), record["poisons"]
    if isinstance(draw, dict):
        for old, new in _RENAMED.items():
            if old in draw:
                draw[new] = draw.pop(old)
                changed = True
    changed |= bring_settings_up_to_date(record.get("settings"), record.get("environment"))
    if isinstance(poisons, dict) and poisons.get("adapted_to") and not record["adapted_to"]:
        record["adapted_to"] = [poisons["adapted_to"]]
        changed = True
    return changed


def bring_settings_up_to_date(settings: Any, environment: Any) -> bool:
    """Fill in what the protocol of an older version did not say; whether there was anything. environment: of the
    record, whose device told the precision."""
    protocol = settings.get("protocol") if isinstance(settings, dict) else None
    if not isinstance(protocol, dict):
        return False
    on_gpu = isinstance(environment, dict) and environment.get("device") == "cuda"
    precision = {"precision": "bfloat16" if on_gpu else "float32"}
    later: dict[str, Mapping[str, Any]] = {
        "threat": _LATER_SETTINGS,
        **dict.fromkeys(("train", "surrogate", "pretrain"), precision),
    }
    sections = [(protocol.get(name), defaults) for name, defaults in later.items()]
    return any([_fill(section, defaults) for section, defaults in sections if isinstance(section, dict)])


def _fill(values: dict[str, Any], defaults: Mapping[str, Any]) -> bool:
    """Whether any was missing."""
    missing = {name: default for name, default in defaults.items() if name not in values}
    values.update(missing)
    return bool(missing)

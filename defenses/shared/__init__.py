"""Engines that several defenses share: filtering, mixing, per-image normalisation, signed steps."""

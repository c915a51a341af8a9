"""Defenses, one file each, on the hook contract beside them."""

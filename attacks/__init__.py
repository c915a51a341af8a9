"""Attacks, one file each, on the shared engines beside them."""

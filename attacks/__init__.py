"""Attacks, one file each; `crafting` holds the engines that they share."""

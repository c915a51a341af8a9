"""Defenses, one file each; `shared` and `diffusion` hold what several of them use."""

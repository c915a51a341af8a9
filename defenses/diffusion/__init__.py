"""Diffusion models: schedule, networks, where they come from."""

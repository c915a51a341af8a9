"""Diffusion models: noise schedules, networks, and where their weights come from."""

"""Sweep files, one TOML file each: the tables of the papers in our plug-in names."""

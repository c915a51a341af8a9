"""Protocol presets, one TOML file each."""

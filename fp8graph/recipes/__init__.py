"""Packaged recipes: one TOML file, one policy."""

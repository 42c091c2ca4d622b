"""Packaged targets: one TOML file with the legality and cost table of one engine."""

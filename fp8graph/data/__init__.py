"""Floor 2: documents as frozen types with total `from_json` / `to_json`. Standard library only."""

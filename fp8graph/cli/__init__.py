"""Floor 10: parse, call, print, map to an exit status. Nothing is computed here."""

"""Floor 8: documents as text that a person enjoys reading. Recomputes nothing."""

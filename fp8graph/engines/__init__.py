"""Floor 7: building engines in a child process, and attesting what they really do."""

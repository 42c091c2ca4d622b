"""Floor 6: runtimes, each in its own file."""

"""Built-in passes and rules: one file, one class, found by the registry; nothing imports them by name."""

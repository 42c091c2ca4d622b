"""Floor 4: models. The only file I/O on models, op keys, shapes, editing that keeps names."""

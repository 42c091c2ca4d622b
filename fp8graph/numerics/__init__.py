"""Arrays in, arrays out: casts, scales and errors. Knows no graph, reads no files."""

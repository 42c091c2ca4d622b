"""One file for each kind of data: `open(uri, ...)` yields feeds."""

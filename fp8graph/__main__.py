"""`python -m fp8graph`."""

from __future__ import annotations

import sys

from fp8graph.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

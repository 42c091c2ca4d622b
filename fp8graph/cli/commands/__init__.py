"""One file per command. Each holds USAGE, EXAMPLES, `configure(parser)` and `run(args, console)`; the first line of its
docstring is its line in `--help`. At import time a command imports argparse and `fp8graph.base` at most."""

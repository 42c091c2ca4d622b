"""Every `FGnnn` code: unique, never reused, each with a page that `explain` prints.

    FG1xx  input and call      FG3xx  target      FG5xx  engine
    FG2xx  decisions           FG4xx  numbers     FG9xx  contracts

To add one, append a `Code` to the file of its hundred in `fp8graph/base/pages/`. A code that is no longer given
moves to `RETIRED`, so that nobody takes it again. Passes of other packages use letters of their own.
"""

from __future__ import annotations

from fp8graph.base.errors import UsageError
from fp8graph.base.names import did_you_mean
from fp8graph.base.pages import calls, decisions, results, targets
from fp8graph.base.pages.code import Code

ALL = (*calls.CODES, *decisions.CODES, *targets.CODES, *results.CODES)
RETIRED: frozenset[str] = frozenset()
CODES: dict[str, Code] = {code.code: code for code in ALL}


def find(code: str) -> Code:
    """The code, in whatever case it was typed. Raises UsageError FG101 with the nearest one."""
    name = code.strip().upper()
    if name in CODES:
        return CODES[name]
    if name in RETIRED:
        raise UsageError(
            f"the code {name} is no longer given", where=code, do="update the file it came from", code="FG101"
        )
    if name[:2] != "FG" and name[:1].isalpha() and any(letter.isdigit() for letter in name):
        do = "a code with other letters belongs to a third-party pass: python -m fp8graph passes"
    else:
        do = did_you_mean(name, CODES) + "; python -m fp8graph explain lists them"
    raise UsageError(f"there is no code '{code}'", where="explain", do=do, code="FG101")

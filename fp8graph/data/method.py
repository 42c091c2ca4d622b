"""How a scale follows from what was seen of a tensor: the words that recipes, options and plans write."""

from __future__ import annotations

from dataclasses import dataclass, replace

NAMES = ("amax", "percentile", "mse", "entropy", "pow2")
KNOWN_AS = {"absmax": "amax", "max": "amax"}
SPELLINGS = "absmax (max), percentile:P with 50 <= P <= 100, mse, entropy, pow2"
_PERCENTILE = 99.99


@dataclass(frozen=True)
class Method:
    """One method: `amax`, `percentile:99.9`, `mse`, `entropy` or `pow2`, and headroom: `mse*2`.

    name      amax: the largest absolute value; percentile: that below which `share` percent of all lie; mse: least
              squared error on the format's own grid; entropy: least divergence on it; pow2: as amax, with the scale
              rounded up to a power of two
    share     percent, of a percentile alone
    headroom  the result times this
    """

    name: str = "amax"
    share: float = 100.0
    headroom: float = 1.0

    @property
    def counts(self) -> bool:
        """Whether it reads the counts of values and not their extremes alone."""
        return self.name in ("percentile", "mse", "entropy")

    @property
    def text(self) -> str:
        """As it is written; `parse` reads it back."""
        share = f":{self.share:g}" if self.name == "percentile" else ""
        return f"{self.name}{share}" + ("" if self.headroom == 1 else f"*{self.headroom:g}")

    @property
    def plain(self) -> Method:
        """The largest absolute value, with the same headroom."""
        return replace(self, name="amax", share=100.0)


def parse(text: str) -> Method:
    """Reads a method. Raises ValueError for what is none."""
    body, _, headroom = text.partition("*")
    name, _, share = body.partition(":")
    name = KNOWN_AS.get(name, name)
    if name not in NAMES or (share and name != "percentile"):
        raise ValueError(f"'{text}' is none of {SPELLINGS}")
    try:
        method = Method(name, float(share or _PERCENTILE) if name == "percentile" else 100.0, float(headroom or 1))
    except ValueError:
        raise ValueError(f"'{text}' holds no number where one belongs") from None
    if not 50 <= method.share <= 100:
        raise ValueError(f"a percentile lies between 50 and 100, not at {method.share:g}")
    if not method.headroom > 0:
        raise ValueError(f"headroom is positive, not {method.headroom:g}")
    return method

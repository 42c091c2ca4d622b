"""Calibration in parts: shards of the data, runs that go on after Ctrl-C, and ranges joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fp8graph.base.errors import InputError, UsageError
from fp8graph.base.files import same_file
from fp8graph.calibrate.samples import Samples
from fp8graph.flow import asked, rangefile
from fp8graph.flow.feeding import Reading
from fp8graph.flow.resuming import Both, Leftover
from fp8graph.numerics.ranges import Need, Ranges, Stat


@dataclass
class Gathering:
    """One run over samples that may be a part of all.

    output   where the ranges will be; what Ctrl-C leaves lies beside it, as `OUTPUT.resume`
    shard    (index, number): every `number`-th sample
    resume   go on from `OUTPUT.resume`, where there is one
    """

    output: Path | None = None
    shard: tuple[int, int] | None = None
    resume: bool = False
    _earlier: Ranges | None = None
    _asked: dict[str, Any] = field(default_factory=dict)

    def begin(self, feeds: Samples, source: str, wanted: Sequence[Need], how: Reading) -> Samples:
        """The samples that are left to be seen. Raises InputError FG111 (no such file of ours) or FG110 (of another
        run)."""
        part = feeds.shard(*self.shard) if self.shard is not None else feeds
        self._asked = {
            "shard": list(self.shard) if self.shard is not None else None,
            "samples": how.samples,
            "batch": how.batch,
            "wanted": sorted(need.text for need in wanted),
        }
        if not (self.resume and self._left.there):
            return part

        def read(document: dict[str, Any]) -> tuple[Ranges, Both]:
            earlier = rangefile.of_whole(document, str(self._left.file))
            both: dict[str, tuple[Any, Any]] = {name: (document[name], value) for name, value in self._asked.items()}
            if document["wanted"] != self._asked["wanted"]:  # names of many tensors would say less
                both["wanted"] = "other tensors", "those of this call"
            return earlier, both | {"model": (earlier.source, source), "data": (earlier.data, part.label)}

        self._earlier = self._left.load(read)
        return part.behind(self._earlier.samples)

    @property
    def _left(self) -> Leftover:
        return Leftover(self.output, "resume", "run")

    def with_earlier(self, found: Ranges) -> Ranges:
        """What was found now together with what earlier runs have seen."""
        return found if self._earlier is None else self._earlier.merge(found)

    def keep(self, found: Ranges) -> None:
        """Writes what there is until now, and raises Interrupted; nothing where nothing was seen."""
        seen = self.with_earlier(found)
        if seen.samples:
            self._left.leave(self._asked, rangefile.whole(seen), f"{seen.samples} samples")

    def finish(self) -> None:
        """Takes away what an interrupted run has left."""
        self._left.finish()


def shard_of(given: Any) -> tuple[int, int] | None:
    """`I/N`, or the two numbers; None is the whole. Raises UsageError FG100."""
    if given is None:
        return None
    parts = given.split("/") if isinstance(given, str) else given
    try:
        index, number = (int(part) for part in parts)
    except (TypeError, ValueError):
        raise asked.wrong("shard", given, "I/N, such as 0/4") from None
    if not 0 <= index < number:
        raise UsageError(
            f"there is no shard {index}/{number}",
            where="--shard",
            why="shards are numbered from 0",
            do=f"choose from 0/{max(number, 1)} to {max(number, 1) - 1}/{max(number, 1)}",
            code="FG100",
        )
    return index, number


def _unlike(one: Stat, other: Stat | None) -> bool:
    """Whether two statistics of a tensor tell different things."""
    if other is None or one.empty or other.empty:
        return False
    return (one.histogram is None) != (other.histogram is None) or one.channels.keys() != other.channels.keys()


def merged(files: Any) -> Ranges:
    """Ranges of shards, joined: the same as of one run over all of their data, in whatever order they are given.

    Raises InputError FG111 (no ranges) or FG110 (of other models or tensors), UsageError FG100.
    """
    parts: list[tuple[str, Ranges]] = []
    paths: list[Path] = []
    for item in [files] if isinstance(files, (str, Path, Ranges)) else files:
        if isinstance(item, Ranges):
            parts.append(("the ranges given", item))
            continue
        path = asked.needed_path(item, "merge")
        if any(same_file(path, other) for other in paths):
            raise UsageError(
                "ranges are to be joined with themselves",
                where=f"--merge {path}",
                why="their samples would count twice",
                do="name each file once",
                code="FG100",
            )
        paths.append(path)
        parts.append((str(path), rangefile.read(path)))
    if not parts:
        raise UsageError("there is nothing to join", where="--merge", do="name the files of all shards", code="FG100")
    (first, whole), *rest = parts
    for where, part in rest:
        why = "they are of two models" if part.source != whole.source else ""
        lone = sorted(part.values.keys() ^ whole.values.keys())
        if lone and not why:
            why = f"'{lone[0]}' and {len(lone) - 1} other tensors are in one of them only"
        other = next((name for name, stat in part.values.items() if _unlike(stat, whole.values.get(name))), None)
        if other and not why:
            why = f"of '{other}' values were counted in one of them only"
        if why:
            raise InputError(
                "these ranges do not belong together",
                where=f"{first}, {where}",
                why=why,
                do="observe all shards with the same model and options",
                code="FG110",
            )
        whole = whole.merge(part)
    return whole

"""Two files of one kind side by side: which ops changed precision, which scales moved, which bytes changed type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fp8graph.data.contents import Contents, OpContent, ScaleContent

KIND, VERSION = "difference", 1


@dataclass(frozen=True)
class OpChange:
    """One op in both files, in another precision or with operands or a weight of other types."""

    a: OpContent
    b: OpContent

    def to_json(self) -> dict[str, Any]:
        """The change as a row, under A's key."""
        row = {"key": self.a.key, "op_type": self.b.op_type or self.a.op_type, "name": self.b.name}
        return {**row, "a": _side(self.a), "b": _side(self.b)}


@dataclass(frozen=True)
class ScaleChange:
    """The scales of one tensor in both files, not the same."""

    a: ScaleContent
    b: ScaleContent

    @property
    def ratio(self) -> float | None:
        """The largest number of B over that of A; None where either is not there or zero."""
        return self.b.largest / self.a.largest if self.a.largest and self.b.largest is not None else None

    def to_json(self) -> dict[str, Any]:
        """The change as a row."""
        return {"tensor": self.a.tensor, "ratio": self.ratio, "a": self.a.to_json(), "b": self.b.to_json()}


@dataclass(frozen=True)
class Difference:
    """What B has otherwise than A.

    about             single values of both, such as the recipe: they say what the files are, and may differ
    io                inputs, outputs, shapes, chips that differ: (A's, B's) by name
    changed           ops of both that compute otherwise; `same` is the number of those that do not
    added, removed    ops of one side only
    moved             tensors of both whose scales differ; `scales` counts those of A only, of B only, and the same ones
    weights           bytes of stored weights by type: (A's, B's), where they differ
    unknown           why a side could not be read, by `a` and `b`; then nothing is said of what is in it
    """

    kind: str
    about: Mapping[str, tuple[Any, Any]]
    io: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    changed: tuple[OpChange, ...] = ()
    added: tuple[OpContent, ...] = ()
    removed: tuple[OpContent, ...] = ()
    same: int = 0
    moved: tuple[ScaleChange, ...] = ()
    scales: tuple[int, int, int] = (0, 0, 0)
    weights: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        """Whether nothing that counts differs. What could not be read is not known to be equal."""
        ops = self.changed or self.added or self.removed
        return not (self.io or ops or self.moved or any(self.scales[:2]) or self.weights or self.unknown)

    @property
    def moves(self) -> dict[str, int]:
        """How many ops went from which precision to which, the most frequent first."""
        counts: dict[str, int] = {}
        for change in self.changed:
            if change.a.precision != change.b.precision:
                name = f"{change.a.precision} -> {change.b.precision}"
                counts[name] = counts.get(name, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def to_json(self) -> dict[str, Any]:
        """The difference as a document."""
        return {
            "schema": f"fp8graph.{KIND}/{VERSION}",
            "kind": self.kind,
            "equal": self.equal,
            "about": _pairs(self.about),
            "unknown": dict(self.unknown),
            "io": _pairs(self.io),
            "moves": self.moves,
            "ops": {
                "same": self.same,
                "changed": [change.to_json() for change in self.changed],
                "added": [op.to_json() for op in self.added],
                "removed": [op.to_json() for op in self.removed],
            },
            "scales": {
                "same": self.scales[2],
                "only_a": self.scales[0],
                "only_b": self.scales[1],
                "moved": [change.to_json() for change in self.moved],
            },
            "weights": _pairs(self.weights),
        }


def differ(a: Contents, b: Contents) -> Difference:
    """The difference of two contents of one kind.

    Ops are found by their key, then by their name where it occurs once on each side. Ops that only serve others on
    both sides are left out. Scales are found by their tensor and format, then by the tensor.
    """
    names = dict.fromkeys([*a.about, *b.about])
    about = {name: (a.about.get(name), b.about.get(name)) for name in names}
    io = {name: (value, b.io[name]) for name, value in a.io.items() if name in b.io and value != b.io[name]}
    unknown = {side: one.unknown for side, one in (("a", a), ("b", b)) if one.unknown}
    if unknown:
        digests = about.get("sha256", ("a", "b"))
        same_file = digests[0] == digests[1]
        return Difference(a.kind, about, {} if same_file else io, unknown={} if same_file else unknown)
    pairs, removed, added = _matched(a.ops, b.ops)
    changed = [OpChange(one, other) for one, other in pairs if _words(one) != _words(other)]
    both, only_a, only_b = _scales(a.scales, b.scales)
    moved = [ScaleChange(one, other) for one, other in both if _numbers(one) != _numbers(other)]
    # Not every file tells its bytes: of one that does not, they are not zero.
    types = sorted({*a.weights, *b.weights}) if a.weights and b.weights else []
    weights = {name: (a.weights.get(name, 0), b.weights.get(name, 0)) for name in types}
    return Difference(
        a.kind,
        about,
        io,
        tuple(changed),
        tuple(op for op in added if not op.minor),
        tuple(op for op in removed if not op.minor),
        len(pairs) - len(changed),
        tuple(moved),
        (only_a, only_b, len(both) - len(moved)),
        {name: pair for name, pair in weights.items() if pair[0] != pair[1]},
    )


def _matched(
    a: Sequence[OpContent], b: Sequence[OpContent]
) -> tuple[list[tuple[OpContent, OpContent]], list[OpContent], list[OpContent]]:
    """Pairs in the order of A, what only A has, what only B has."""
    by_key = {op.key: op for op in b if op.key}
    pairs = [(op, by_key.pop(op.key)) for op in a if op.key in by_key]
    found = {id(op) for op, _ in pairs}
    left = [op for op in a if op.key and id(op) not in found]
    names_a, names_b = _once(left), _once(by_key.values())
    for name, op in names_a.items():
        other = names_b.get(name)
        if other is not None and other.op_type == op.op_type:
            pairs.append((op, by_key.pop(other.key)))
            found.add(id(op))
    place = {id(op): index for index, op in enumerate(a)}
    pairs.sort(key=lambda pair: place[id(pair[0])])
    told = [(one, other) for one, other in pairs if not (one.minor and other.minor)]
    return told, [op for op in left if id(op) not in found], list(by_key.values())


def _once(ops: Iterable[OpContent]) -> dict[str, OpContent]:
    """Ops by their names, where only one has it."""
    found: dict[str, list[OpContent]] = {}
    for op in ops:
        found.setdefault(op.name, []).append(op)
    return {name: same[0] for name, same in found.items() if name and len(same) == 1}


def _scales(
    a: Sequence[ScaleContent], b: Sequence[ScaleContent]
) -> tuple[list[tuple[ScaleContent, ScaleContent]], int, int]:
    """Pairs in the order of A, how many only A has, how many only B has."""
    rest = list(a)
    left = {(scale.tensor, scale.format, scale.key): scale for scale in b}
    pairs: list[tuple[ScaleContent, ScaleContent]] = []
    for count in (3, 2, 1):  # tensor, format and op; tensor and format; the tensor alone
        keys = {key[:count]: key for key in reversed(left)}
        unmatched = []
        for scale in rest:
            key = keys.pop((scale.tensor, scale.format, scale.key)[:count], None)
            if key is None:
                unmatched.append(scale)
            else:
                pairs.append((scale, left.pop(key)))
        rest = unmatched
    return pairs, len(rest), len(left)


def _words(op: OpContent) -> tuple[str, str, str]:
    return op.precision, op.detail, op.weight


def _numbers(scale: ScaleContent) -> tuple[Any, ...]:
    return scale.format, scale.per, scale.origin, scale.scales, scale.least, scale.largest, scale.digest


def _side(op: OpContent) -> dict[str, Any]:
    row = {"key": op.key, "precision": op.precision, "detail": op.detail, "why": op.why, "weight": op.weight}
    return {name: value for name, value in row.items() if value} | (
        {"weight_bytes": op.weight_bytes} if op.weight_bytes is not None else {}
    )


def _pairs(pairs: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    return {name: {"a": one, "b": other} for name, (one, other) in pairs.items()}

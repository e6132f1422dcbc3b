"""How the tensors of a file fit a layout: every name and every shape of both is looked at.

Importing this module imports no torch.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mla_cli.core.layouts import COUNTERS, LAYOUTS, NEEDED, OPTIONAL, UNUSED, Layout, Shape, Shapes
from mla_cli.core.weights import plain_name, read_checkpoint
from mla_cli.errors import MlaError

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 10  # so many names of each kind of difference are listed
MOST_BLOCKS = 1000


@dataclass
class Found:
    """How a file's tensors fit a layout.

    parts: part -> its names in the file. sides: free side -> its length. depths: start of the blocks' names -> their
    number. missing, unexpected: names; other_shape: what is there, for what. All three empty: it fits.
    """

    layout: Layout
    parts: dict[str, list[str]]
    sides: dict[str, int]
    depths: dict[str, int]
    missing: list[str]
    unexpected: list[str]
    other_shape: list[str]

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.other_shape)

    def names(self, *uses: str) -> list[str]:
        """Names of the parts of these uses."""
        return [n for part, names in self.parts.items() if self.layout.parts[part].use in uses for n in names]

    def summary(self) -> str:
        """What the file holds and what is used of it, in one line."""
        sides = [f"{size} {name}" for name, size in self.sides.items() if name != "d"]
        blocks = [f"{number} {start.split('.')[-2]}" for start, number in self.depths.items()]
        parts: dict[str, list[str]] = {use: [] for use in (NEEDED, OPTIONAL, UNUSED)}
        for part, names in self.parts.items():
            if names:
                parts[self.layout.parts[part].use].append(f"{part} {len(names)}")
        used, unused = ", ".join(parts[NEEDED] + parts[OPTIONAL]), ", ".join(parts[UNUSED]) or "none"
        sizes = ", ".join([*sides, *blocks])
        return f"layout {self.layout.name} ({sizes}); tensors used: {used}; deliberately unused: {unused}"

    @property
    def share(self) -> float:
        """How much of what the layout needs is there by its name."""
        there = len(self.names(NEEDED, OPTIONAL))
        return there / max(there + len(self.missing), 1)


def read_layout(path: Path, layout: Layout) -> "tuple[dict[str, Tensor], str, Found]":
    """A checkpoint's tensors, its sha256, and how they fit.

    Raises MlaError, with the first differences, where they do not, and for values that are not finite.
    """
    tensors, digest = read_checkpoint(path)
    found = compare(layout, tensors)
    if not found.fits:
        kinds = {"missing": found.missing, "unexpected": found.unexpected, "of other shape": found.other_shape}
        wrong = {kind: names for kind, names in kinds.items() if names}
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in wrong.items())
        lists = [f"  {kind}: {listed(names)}" for kind, names in wrong.items()]
        message = f"`{path}` is not in layout `{layout.name}` ({layout.what}). Tensors: {counts}"
        raise MlaError("\n".join([message, *lists]), hint_for(path, layout, nearest(tensors)))
    for name in found.names(NEEDED, OPTIONAL):
        if not bool(tensors[name].float().isfinite().all()):
            raise MlaError(f"`{path}` holds values in `{name}` that are not finite", "fetch or make the file again")
    return tensors, digest, found


def hint_for(path: Path, layout: Layout, like: Layout | None) -> str:
    """What to do with a file that does not fit a layout. like: the one it looks most like, None for none."""
    if like is None:
        return f"it looks like none of the layouts {', '.join(LAYOUTS)}"
    if like is layout:
        return "it looks like a changed copy: fetch the file again, or ask who made it what was changed"
    more = f" --dataset {like.datasets[0]}" if like.datasets else ""
    return f"it looks like layout `{like.name}`: run `mla import {path} --layout {like.name}{more}`"


def compare(layout: Layout, tensors: "Mapping[str, Tensor]") -> Found:
    """How the tensors fit the layout: every name and every shape of both is looked at."""
    depths = {start: depth(start, tensors) for start in sorted(stacks(layout))}
    expected = {p: dict(expand(part.shapes, depths)) for p, part in layout.parts.items()}
    there_are = {start: n for start, n in depths.items() if any(name.startswith(start) for name in tensors)}
    sides = free_sides({n: s for shapes in expected.values() for n, s in shapes.items()}, tensors)
    found = Found(layout, {p: [] for p in layout.parts}, sides, there_are, [], [], [])
    some = any(n in tensors for p, part in layout.parts.items() if part.use == OPTIONAL for n in expected[p])
    for p, part in layout.parts.items():
        there = [n for n in expected[p] if n in tensors]
        if part.use == NEEDED or (part.use == OPTIONAL and (there or not some)):
            found.missing += [n for n in expected[p] if n not in tensors]
        found.parts[p] = there + [n for n in tensors if n.startswith(part.prefixes)]
        for n in there:
            wanted, given = tuple(length(side, sides) for side in expected[p][n]), tuple(tensors[n].shape)
            if given != wanted or tensors[n].is_floating_point() == n.endswith(COUNTERS):
                kind = str(tensors[n].dtype).removeprefix("torch.")
                of = "int64" if n.endswith(COUNTERS) else "float"
                found.other_shape.append(f"{plain_name(n)} {kind} {text(given)} for {of} {text(wanted)}")
    known = {n for names in found.parts.values() for n in names}
    found.unexpected = [n for n in tensors if n not in known]
    return found


def stacks(layout: Layout) -> set[str]:
    """Starts of the names that hold the number of a block."""
    return {n.partition("*")[0] for part in layout.parts.values() for n in part.shapes if "*" in n}


def depth(start: str, tensors: "Mapping[str, Tensor]") -> int:
    """How many blocks a file has under a start of names; at least 1. Numbers that leave one out count as missing."""
    pattern = re.compile(re.escape(start) + r"(\d+)\.")
    return min(max(1, len({found[1] for n in tensors if (found := pattern.match(n))})), MOST_BLOCKS)


def expand(shapes: Shapes, depths: Mapping[str, int]) -> Iterator[tuple[str, Shape]]:
    """Names and shapes with the number of every block in place of `*`."""
    for name, shape in shapes.items():
        start, star, _ = name.partition("*")
        for number in range(depths[start] if star else 1):
            yield name.replace("*", str(number)), shape


def factor(side: str) -> tuple[int, str]:
    """`3d` as (3, "d")."""
    found = re.fullmatch(r"(\d*)(\D.*)", side)
    assert found
    return int(found[1] or 1), found[2]


def free_sides(expected: Shapes, tensors: "Mapping[str, Tensor]") -> dict[str, int]:
    """The length that most tensors of the file give to each free side; none where no tensor says."""
    votes: dict[str, Counter[int]] = {}
    for name, shape in expected.items():
        given = tuple(tensors[name].shape) if name in tensors else ()
        if len(given) != len(shape):
            continue
        for side, size in zip(shape, given, strict=True):
            if isinstance(side, str):
                times, letter = factor(side)
                if size % times == 0:
                    votes.setdefault(letter, Counter())[size // times] += 1
    return {letter: found.most_common(1)[0][0] for letter, found in votes.items()}


def length(side: int | str, sides: Mapping[str, int]) -> int | str:
    """A side as a number, where the file decides it."""
    if isinstance(side, int):
        return side
    times, letter = factor(side)
    return times * sides[letter] if letter in sides else side


def nearest(tensors: "Mapping[str, Tensor]") -> Layout | None:
    """The layout whose names a file has most of, at least half of them; None for none."""
    best = max((compare(layout, tensors) for layout in LAYOUTS.values()), key=lambda found: found.share)
    return best.layout if best.share >= 0.5 else None


def listed(names: list[str]) -> str:
    """The first names of a list."""
    return ", ".join(map(plain_name, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")


def text(shape: tuple[int | str, ...]) -> str:
    """`(64, 3, 7, 7)`, also with sides that are not known."""
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"

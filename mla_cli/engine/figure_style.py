"""The one style of all figures: colours that colour-blind readers tell apart, dashes, markers, how files are written.

Every figure is a PNG (light) and an SVG that follows the reader's light or dark colour scheme. Equal numbers give equal
bytes. Names from recipes and tables are drawn as plain text: no `$x$` becomes mathematics.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from mla_cli.files import whole_file
from mla_cli.markup import one_line

# Okabe-Ito, which stays distinct for colour-blind readers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "//", "..", "xx", "\\\\", "--", "oo")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
INK, PAPER = "#1b1f24", "#ffffff"  # text and lines, and what they stand on
# What becomes of them, and of the colours that a dark page would swallow. Cells of heat maps carry their own ground:
# their numbers are written in LIGHT_TEXT and DARK_TEXT, which stay.
DARK = {INK: "#e6e9ee", PAPER: "#171b21", "#000000": "#f4f4f4", "#0072b2": "#3a97d9", "#d55e00": "#e8762b"}
LIGHT_TEXT, DARK_TEXT = "#fdfdfd", "#020202"
LONGEST_NAME = 28  # characters of a name in a figure
UNDRAWN = "\N{WHITE SQUARE}"  # stands for a character that the font does not have


def line_look(number: int) -> dict[str, Any]:
    """Colour, marker and dash of the lines of one thing; 49 of them differ in at least one."""
    round_number = number // 7
    return {
        "color": COLOURS[number % 7],
        "marker": MARKERS[(number + round_number) % 7],
        "linestyle": DASHES[(number + round_number) % 7],
    }


def bar_look(number: int) -> dict[str, Any]:
    """Colour and hatch of the bars of one thing."""
    round_number = number // 7
    hatch = HATCHES[(number + round_number) % 7]
    return {"color": COLOURS[number % 7], "edgecolor": "black", "hatch": hatch, "linewidth": 0.6}


def name_of(text: str, longest: int = LONGEST_NAME) -> str:
    """A name as a figure can draw it: one line, not too long, UNDRAWN for what the font lacks; control characters, and
    those that turn the direction of writing, are shown as in a table.

    A leading blank keeps a name such as `_x` in the legend, which would otherwise leave it out.
    """
    drawn = "".join(c if ord(c) in _drawable() else UNDRAWN for c in one_line(str(text)))
    if len(drawn) > longest:
        drawn = drawn[: longest - 1] + "…"
    return f" {drawn}" if drawn.startswith("_") else drawn


def all_drawn(names: Sequence[str]) -> bool:
    """Whether the font has every character of the names."""
    return not any(UNDRAWN in name_of(name) for name in names)


@cache
def _drawable() -> frozenset[int]:
    """Code points of the figures' font."""
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())


@contextmanager
def plotting() -> Iterator[Any]:
    """pyplot without a screen, in our style. Fixed ids and no date: equal numbers give equal bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    style: Any = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    style |= {
        "svg.hashsalt": "mla",
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "text.parse_math": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with plt.rc_context(style):
        yield plt
        plt.close("all")


def log_scale(axes: Any) -> None:
    """A logarithmic y axis whose numbers are plain text, `0.01` rather than a power."""
    from matplotlib.ticker import LogFormatter

    class PlainLog(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(PlainLog())
    axes.yaxis.set_minor_formatter(PlainLog(labelOnlyBase=False, minor_thresholds=(1.5, 0.5)))


def whole_epochs(axes: Any) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def panels(plt: Any, count: int, width: float = 3.2, height: float = 2.6, most: int = 2, **options: Any) -> Any:
    """A figure of `count` small plots, at most `most` in a row, and those plots; the rest of the grid is hidden.

    Two plots in a row can be read when the figure is shown at half of its width.
    """
    columns = min(most, count)
    lines = -(-count // columns)
    size = (width * columns, height * lines)
    figure, grid = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False, **options)
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    return figure, list(grid.flat[:count])


def save(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and SVG."""
    files = []
    for suffix in ("png", "svg"):
        content = io.BytesIO()
        figure.savefig(content, format=suffix, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
        figure.set_layout_engine("none")  # the layout is found: to find it again would double the time
        path = folder / f"{name}.{suffix}"
        with whole_file(path) as file:
            file.write(adaptive(content.getvalue()) if suffix == "svg" else content.getvalue())
        files.append(path)
    return files


def adaptive(svg: bytes) -> bytes:
    """The drawing with a style sheet that changes its colours where the reader prefers dark."""
    rules = []
    for light, dark in DARK.items():
        for kind in ("fill", "stroke"):
            rules.append(f'[style*="{kind}: {light}"], [{kind}="{light}"] {{{kind}: {dark} !important}}')
    sheet = "@media screen and (prefers-color-scheme: dark) {" + " ".join(rules) + "}"
    return svg.replace(b"</style>", sheet.encode() + b"</style>", 1)

"""Plain text and tables in, HTML out. Whatever comes from a file is escaped here and nowhere else.

Every function but those that take `parts` reads plain text. `parts` are pieces of HTML made by these functions.
"""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mla_cli.markup import Wide, one_line, printable

LARGE = 1100  # pixels; a wider drawing is shown in its own size and scrolls, so that its text can be read


@dataclass(frozen=True)
class At:
    """Where a section stands: its level of heading, and what its identifiers start with, so that none occurs twice."""

    level: int
    prefix: str = ""

    def name(self, identifier: str) -> str:
        return self.prefix + identifier


def text(content: object) -> str:
    """Any text as HTML: nothing in it is markup, control characters and line breaks are made visible."""
    return html.escape(one_line(str(content)), quote=True)


def words(content: str) -> str:
    """A sentence whose `names in backticks` are set as code, as in the terminal's messages."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text(content)).replace(" %", "&nbsp;%")


def paragraph(content: str, kind: str = "") -> str:
    return f"<p{_class(kind)}>{words(content)}</p>"


def bullets(lines: Sequence[str], kind: str = "") -> str:
    """A list; nothing for no lines."""
    return f"<ul{_class(kind)}>{''.join(f'<li>{words(line)}</li>' for line in lines)}</ul>" if lines else ""


def code(content: str, label: str) -> str:
    """Commands or YAML, in a box that scrolls by itself; line breaks stay."""
    lines = html.escape(printable(content), quote=True)
    return f'<pre tabindex="0" role="group" aria-label="{text(label)}"><code>{lines}</code></pre>'


def details(summary: str, *parts: str) -> str:
    """What unfolds on a click; it is open in print."""
    return f"<details><summary>{text(summary)}</summary>{''.join(parts)}</details>"


def beside(*parts: str) -> str:
    """A figure and its table next to each other where there is room."""
    return f'<div class="beside">{"".join(f"<div>{part}</div>" for part in parts if part)}</div>'


def section(at: At, identifier: str, title: str, *parts: str) -> str:
    """A part of the page with its heading. Only those of the first level are landmarks: their names occur once."""
    name, level = at.name(identifier), at.level
    inside = f'<h{level} id="{name}-title">{text(title)}</h{level}>{"".join(parts)}'
    if level > 2:
        return f'<div class="part" id="{name}">{inside}</div>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{inside}</section>'


def table(at: At, identifier: str, wide: Wide) -> str:
    """A wide table, as the terminal shows it: caption, heads with their scope, best in bold and second underlined."""
    name = at.name(identifier)
    cells_of = [[row[c] for row in wide.rows] for c in range(1, len(wide.columns))]
    kinds = ["", *(_class("words" if any(map(_is_words, cells)) else "") for cells in cells_of)]
    heads = "".join(
        f'<th scope="col"{kind}>{text(column)}</th>' for kind, column in zip(kinds, wide.columns, strict=True)
    )
    lines = []
    for r, row in enumerate(wide.rows):
        cells = [f'<th scope="row">{text(row[0])}</th>']
        for c, cell in enumerate(row[1:], 1):
            before, after = wide.marked(r, c, ("<strong>", "</strong>"), ("<u>", "</u>"))
            value, spread = re.fullmatch(r"(.*?)((?: ± | \[).*)?", text(cell), re.DOTALL).groups("")  # type: ignore[union-attr]
            rest = f' <span class="spread">{spread[1:]}</span>' if spread else ""
            cells.append(f"<td{kinds[c]}>{before}{value}{rest}{after}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
    caption = f'<caption><span id="{name}-caption">{text(wide.title)}</span></caption>'
    region = f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{name}-caption">'
    return f"{region}<table>{caption}{body}</table></div>" + bullets(wide.notes, "notes")


def tiles(values: Sequence[tuple[str, str, str]]) -> str:
    """Key numbers: name, value and what it stands on. A percentage gets a bar."""
    found = []
    for name, value, note in values:
        share = re.match(r"(\d+(?:\.\d+)?) %", value)
        bar = f'<span class="bar" aria-hidden="true"><span style="width:{share[1]}%"></span></span>' if share else ""
        cells = f'<dd class="value">{text(value)}{bar}</dd><dd class="note">{text(note)}</dd>'
        found.append(f"<div><dt>{text(name)}</dt>{cells}</div>")
    return f'<dl class="tiles">{"".join(found)}</dl>'


def figure(files: Sequence[Path], alt: str, caption: str) -> str:
    """A drawing, inside the page as SVG; nothing where none was made. alt: what it shows, for who cannot see it."""
    drawing = next((file for file in files if file.suffix == ".svg"), None)
    if drawing is None:
        return ""
    content = drawing.read_bytes()
    width, height = _pixels(content, b"width"), _pixels(content, b"height")
    data = base64.b64encode(content).decode("ascii")
    kind = _class("large" if width > LARGE else "")
    image = f'<img{kind} src="data:image/svg+xml;base64,{data}" alt="{text(alt)}" width="{width}" height="{height}">'
    files_text = f'<span class="files">{text(drawing.stem)}.png, .svg</span>'
    region = f'<div class="scroll" role="group" tabindex="0" aria-label="{text("figure: " + caption)}">{image}</div>'
    return f"<figure>{region}<figcaption>{words(caption)} {files_text}</figcaption></figure>"


def _pixels(svg: bytes, side: bytes) -> int:
    """Width or height of a drawing of matplotlib's, in CSS pixels (its points are 1/72 inch)."""
    found = re.search(rb"<svg\b[^>]*?\b" + side + rb'="([\d.]+)pt"', svg)
    return round(float(found[1]) * 96 / 72) if found else 600


def _is_words(cell: str) -> bool:
    """Whether a cell is text, which is set to the left, and no number."""
    return not re.match(r"[+\-\d.✓]*(\s|$)|nan", cell)


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""

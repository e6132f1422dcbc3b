"""Wide tables, and how they are written as Markdown and as LaTeX (booktabs)."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class Wide:
    """A table as people read it: text cells, ready for the terminal, Markdown or LaTeX.

    best, second: cells (row, column) to set in bold and to underline. words: its columns hold sentences, which a
    terminal shows from the left and wraps.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    best: set[tuple[int, int]] = field(default_factory=set)
    second: set[tuple[int, int]] = field(default_factory=set)
    words: bool = False

    def marked(self, row: int, column: int, bold: tuple[str, str], underlined: tuple[str, str]) -> tuple[str, str]:
        """What to write around a cell: around the best and the second-best ones, nothing around the others."""
        place = (row, column)
        return bold if place in self.best else underlined if place in self.second else ("", "")

    def cells(self, write: Callable[[str], str], bold: tuple[str, str], underlined: tuple[str, str]) -> list[list[str]]:
        """The rows as `write` writes a cell, the best and second-best ones marked unless they are empty."""
        rows = []
        for r, row in enumerate(self.rows):
            marks = [self.marked(r, c, bold, underlined) if cell else ("", "") for c, cell in enumerate(row)]
            rows.append([before + write(cell) + after for (before, after), cell in zip(marks, row, strict=True)])
        return rows


def printable(text: str) -> str:
    """Text from files with its control characters made visible, so that it cannot steer the terminal; lines stay.

    Escape codes, tabs, carriage returns, marks that turn the direction of writing or have no width, and bytes of file
    names that are no text are written as Python would: `\\x1b[31m`.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else escaped(c) for c in text)


def one_line(text: str) -> str:
    """`printable` text whose line breaks are shown too: a name or a cell of a table cannot become two."""
    return printable(text).replace("\n", "\\n")


def escaped(character: str) -> str:
    """A control character as Python would write it."""
    return character.encode("unicode_escape").decode("ascii")


def formula_free(text: str) -> str:
    """A cell of a CSV file that people open: one that a spreadsheet would take for a formula gets an apostrophe.

    >>> formula_free("=1+1"), formula_free("a = 1")
    ("'=1+1", 'a = 1')
    """
    shown = one_line(text)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


# ---------------------------------------------------------------- Markdown


CODE = re.compile(r"(?<!`)(`[^`]+`)(?!`)")
# What Markdown would read as emphasis, code, mathematics, HTML, the end of a cell, a link or an escape. A bracket alone
# and an underscore inside a word mean nothing, and stay readable.
MARKED = re.compile(r"[`*~$<|]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|&(?=#?\w+;)|\\(?=[^\w\s]|$)")


def plain(text: str) -> str:
    """Text that Markdown shows as it is.

    >>> print(plain("<b> my_set [0.1, 0.2] [a](b) *"))
    \\<b> my_set [0.1, 0.2] [a\\](b) \\*
    """
    return MARKED.sub(r"\\\g<0>", one_line(text))


def sentence(text: str) -> str:
    """The same, but `names in backticks` stay code."""
    return "".join(part if i % 2 else plain(part) for i, part in enumerate(CODE.split(one_line(text))))


def markdown(table: Wide) -> str:
    """A GitHub-style table with its title and notes."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    cells = table.cells(plain, ("**", "**"), ("<u>", "</u>"))
    ruler = "|" + "|".join([":--"] + ["--:"] * (len(table.columns) - 1)) + "|"
    lines = [f"**{sentence(table.title)}**", "", line([plain(c) for c in table.columns]), ruler, *map(line, cells)]
    if table.notes:
        lines += ["", *map(sentence, table.notes)]
    return "\n".join(lines)


# ---------------------------------------------------------------- LaTeX

# What plain LaTeX, without any package, would read as a command, as a ligature or in another sense.
TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",  # at the start of a row it would be an argument of the line break before it, as * would
    "*": "{*}",
    "\u00a0": "~",
    "±": r"$\pm$",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "✓": r"$\surd$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "°": r"$^\circ$",
    "µ": r"$\mu$",
    "−": "$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≠": r"$\neq$",
    "∞": r"$\infty$",
    "→": r"$\rightarrow$",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "ß": r"\ss{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "ı": r"\i{}",
    "§": r"\S{}",
    "£": r"\pounds{}",
    "©": r"\copyright{}",
}
ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c", "\u0328": "k",
}  # fmt: skip
GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi o pi rho varsigma sigma tau upsilon phi "
    "chi psi omega"
)
TEX |= {chr(0x3B1 + i): "o" if name == "o" else f"$\\{name}$" for i, name in enumerate(GREEK.split())}
MINUS = re.compile(r"(?<![^\s(,=])-(?=\d)")  # of a number, not in a name
LIGATURE = re.compile(r"([-'])(?=\1)")  # two hyphens would become a dash, two apostrophes a quotation mark


def tex(text: str) -> str:
    """Text as LaTeX prints it, with commands of plain LaTeX only. What it has no command for stays as it is.

    >>> print(tex("50 % of my_set, -0.9 ± 0.3 †"))
    50 \\% of my\\_set, $-$0.9 $\\pm$ 0.3 \\dag{}
    """
    shown = unicodedata.normalize("NFC", one_line(text))
    parts = LIGATURE.split(MINUS.sub("−", shown))  # at every second place the first of two equal characters
    return "".join("".join(map(tex_character, part)) + "{}" * (i % 2) for i, part in enumerate(parts))


def tex_character(character: str) -> str:
    if character in TEX:
        return TEX[character]
    base, *accents = list(unicodedata.normalize("NFD", character))
    if len(accents) == 1 and accents[0] in ACCENTS and base.isascii():
        dotless = f"\\{base}" if base in "ij" else base
        return f"\\{ACCENTS[accents[0]]}{{{dotless}}}"
    return character


def latex(table: Wide) -> str:
    """A `table` environment that needs only the package booktabs: caption, rules, best bold, second underlined."""
    body = [" & ".join(row) + r" \\" for row in table.cells(tex, (r"\textbf{", "}"), (r"\underline{", "}"))]
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{tex(table.title)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        r"\toprule",
        " & ".join(map(tex, table.columns)) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if table.notes:
        lines += ["", r"\medskip", r"\footnotesize", " \\\\\n".join(map(tex, table.notes))]
    lines.append(r"\end{table}")
    foreign = sorted({c for line in lines for c in line if not c.isascii()})
    if foreign:
        lines.insert(1, f"% needs XeLaTeX or LuaLaTeX and a font with: {' '.join(foreign)}")
    return "\n".join(lines)

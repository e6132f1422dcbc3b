"""Wide tables as LaTeX: whatever stands in a cell, the table keeps its shape and no command gets in."""

import re
import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mla_cli.markup import TEX, Wide, latex, markdown, tex

HOSTILE = string.punctuation + string.whitespace + "ab1±†‡✓é\x1b\x00字"
# what stands for one character; whatever is left of a text must be letters, digits and harmless marks
WRITTEN = re.compile(
    "|".join(map(re.escape, sorted(TEX.values(), key=len, reverse=True))) + r"|\\[`'^~=.\"uHvckr]\{\w\}"
)
SPECIAL = re.compile(r"[\\{}$&#^~%_<>|`\n\[*]")


def body(written: str) -> list[str]:
    """The rows between the rules."""
    inside = written.partition("\\midrule\n")[2].partition("\\bottomrule")[0]
    return inside.splitlines()


@given(st.text(alphabet=HOSTILE, max_size=30))
def test_text_keeps_no_meaning_of_its_own(text: str) -> None:
    written = tex(text)
    assert not SPECIAL.search(WRITTEN.sub("", re.sub(r"(?<=[-'])\{\}", "", written)))
    assert "\n" not in written and "--" not in written and "''" not in written
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", written):
        depth += 1 if brace == "{" else -1
        assert depth in (0, 1)
    assert depth == 0


@given(st.lists(st.text(alphabet=HOSTILE, max_size=12), min_size=6, max_size=6))
def test_hostile_names_do_not_change_the_shape(cells: list[str]) -> None:
    wide = Wide("t", cells[:3], [cells[:3], cells[3:]], [cells[0]], {(0, 0)}, {(1, 2)})
    rows = body(latex(wide))
    assert len(rows) == 2
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == 2
        assert row.endswith(r" \\")
        assert not row.lstrip().startswith(("[", "*")), "it would be an argument of the line break before it"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("62.2 ± 0.3 †", r"62.2 $\pm$ 0.3 \dag{}"),
        ("-0.9 ± 0.3", r"$-$0.9 $\pm$ 0.3"),
        ("✓‡", r"$\surd$\ddag{}"),
        ("fused - MLA", "fused - MLA"),
        ("digits-mla-s0", "digits-mla-s0"),
        ("--set a=-1", "-{}-set a=$-$1"),
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("x_1^2 ~ 50% of $5 & #3", r"x\_1\textasciicircum{}2 \textasciitilde{} 50\% of \$5 \& \#3"),
        ("[audio] *", "{[}audio] {*}"),
        ("Zürich, Łódź, façade", r"Z\"{u}rich, \L{}\'{o}d\'{z}, fa\c{c}ade"),
        ("na\u0131\u0308ve", unicodedata.normalize("NFC", r"na\i{}" + "\u0308ve")),
        ("αβ", r"$\alpha$$\beta$"),
        ("\x1b[31m\n", r"\textbackslash{}x1b{[}31m\textbackslash{}n"),
    ],
)
def test_characters(text: str, written: str) -> None:
    assert tex(text) == written


def test_the_whole_environment() -> None:
    wide = Wide("accuracy in %", ["method", "fused"], [["mla", "65.7 ± 2.4"], ["late", "62.2"], ["none", ""]])
    wide.notes, wide.best, wide.second = ["n = 3", "± is the sd"], {(0, 1), (2, 1)}, {(1, 1)}
    assert latex(wide).splitlines() == [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        r"\caption{accuracy in \%}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"method & fused \\",
        r"\midrule",
        r"mla & \textbf{65.7 $\pm$ 2.4} \\",
        r"late & \underline{62.2} \\",
        r"none &  \\",
        r"\bottomrule",
        r"\end{tabular}",
        "",
        r"\medskip",
        r"\footnotesize",
        r"n = 3 \\",
        r"$\pm$ is the sd",
        r"\end{table}",
    ]


def test_letters_that_latex_has_no_command_for_are_named_and_kept() -> None:
    written = latex(Wide("字 table", ["a"], [["中"]]))
    assert written.splitlines()[1] == "% needs XeLaTeX or LuaLaTeX and a font with: 中 字"
    assert "\\caption{字 table}" in written


def test_markdown_and_latex_mark_the_same_cells() -> None:
    wide = Wide("t", ["m", "x", "y"], [["a", "1", "2"], ["b", "3", ""]], [], {(0, 2), (1, 1)}, {(0, 1)})
    assert markdown(wide).count("**") == 4 + 2 and markdown(wide).count("<u>") == 1
    assert latex(wide).count("\\textbf") == 2 and latex(wide).count("\\underline") == 1

"""`mla report`: what the page says, about runs of every kind; hostile names, damaged files; figures and their files.

Drawing takes seconds, so that most tests write the page with empty drawings; `test_report_in_browser.py` looks at it.
"""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import mla
from hypothesis import given
from hypothesis import strategies as st
from tiny import finish, mfeat_recipe, trained, unsealed

from mla_cli import tables
from mla_cli.core import intervals
from mla_cli.core.metrics import confusion
from mla_cli.engine import figure_style as style
from mla_cli.engine import score_figures
from mla_cli.engine.ablate import Ablation, Plan, ablate
from mla_cli.engine.events import Progress
from mla_cli.engine.predictions import read_predictions
from mla_cli.engine.report import RunFacts, find_report, load_grid, load_run
from mla_cli.engine.run import Run
from mla_cli.errors import MlaError
from mla_cli.render import Wide
from mla_cli.report.closing import repeat_commands, repeat_section, warnings_section
from mla_cli.report.page import CLOSER, write_report
from mla_cli.report.run_sections import confused_pairs, missing, summary, weights
from mla_cli.report.tags import At, figure, paragraph, table
from mla_cli.report.training_sections import head, learning
from mla_cli.standings import budget_table

SCRIPT, FORMULA, IMAGE = "<script>alert(1)</script>", "$x_{ \\frac _cat \u732b", 'a"><img src=x onerror=alert(1)>'
FILES = ("predictions.parquet", "history.jsonl", "recipe.yaml", "run.json")


class Words(HTMLParser):
    """A page's tags and text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\xa0", " ")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def report(run: Run, out: Path) -> Words:
    return Words(finish(write_report(str(run.path), run.path.parent, out, False)).read_text("utf-8"))


def sections(run: Run, folder: Path, *builders: Callable[[RunFacts, Path, At], str]) -> Words:
    """Some sections of a run's page."""
    f = load_run(run)
    return Words("".join(build(f, folder, At(2)) for build in builders))


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals are tested elsewhere."""
    draw_counts = intervals.draw_counts
    monkeypatch.setattr(intervals, "draw_counts", lambda units, draws=0: draw_counts(units, 20))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but not drawn."""

    def savefig(figure, file, format: str, **options) -> None:
        file.write(b'<svg width="96pt" height="72pt"><style></style></svg>' if format == "svg" else b"\x89PNG")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data_dir: Path, mfeat_store) -> dict[str, Run]:
    """Small runs on `mfeat`: read them, do not change them."""
    folder = tmp_path_factory.mktemp("runs")
    recipes = {
        "mla": mfeat_recipe(train={"missing_rate": 0.3}),
        "concat": mfeat_recipe(method={"name": "concat"}, train={"epochs": 1}),
        "one": mfeat_recipe(("mor",), train={"epochs": 1, "diagnostics": False}),
        "smoke": mfeat_recipe(train={"epochs": 1, "max_rounds": 2}),
    }
    return {name: trained(recipe, data_dir, folder) for name, recipe in recipes.items()}


def copy_of(run: Run, folder: Path, *without: str) -> Run:
    """A run's files elsewhere, to be changed."""
    path = folder / "runs" / run.name
    path.mkdir(parents=True)
    for name in FILES:
        if name not in without:
            shutil.copy(run.path / name, path / name)
    unsealed(path)
    return Run(path)


# ---------------------------------------------------------------- hostile names, and drawings


def test_names_of_classes_are_no_markup(runs: dict[str, Run], tmp_path: Path, undrawn) -> None:
    """The command from end to end, on a run with one modality and without diagnostics."""
    run, out = copy_of(runs["one"], tmp_path), tmp_path / "out" / "my.html"
    p = read_predictions(run.predictions)
    p.facts["classes"] = [SCRIPT, FORMULA, IMAGE, *p.facts["classes"][3:]]
    p.write(run.predictions)
    output = mla("report", run.path, "--out", out)
    assert (output.code, output.stdout) == (0, f"{out}\n"), output.stderr
    assert "sections: 12 of 12\n" in output.stderr and f"figures: {out.with_name('my_figures')}\n" in output.stderr
    page = Words(out.read_text("utf-8"))
    for name in (SCRIPT, FORMULA, IMAGE):
        assert name in page.text
    assert not page.all("script") and len(page.all("img")) == 4
    assert all(str(image["src"]).startswith("data:image/svg+xml;base64,") for image in page.all("img"))
    assert "\u25a1 stands for a character that the figure's font lacks" in page.text
    assert not list(out.parent.rglob(".*")), "nothing temporary is left"
    assert "one modality: nothing of it can be missing, nothing is fused" in page.text
    assert "the run was trained without diagnostics" in page.text
    assert [h["id"] for h in page.all("h2")] == [
        f"{name}-title" for name in ("summary", "results", "learning", "calibration", "confusion", "hgm", "repeat")
    ]


def test_names_of_classes_are_no_mathematics(tmp_path: Path) -> None:
    """Drawn: one PNG and one SVG that follows the reader's scheme and holds no markup of theirs."""
    rng = np.random.default_rng(0)
    scores = (rng.normal(size=(30, 3)).astype(np.float32), rng.integers(0, 3, 30))
    (files,) = score_figures.confusion_figures({"fused": scores}, [SCRIPT, FORMULA, IMAGE], tmp_path)
    assert [f.name for f in files] == ["confusion_fused.png", "confusion_fused.svg"]
    drawing = files[1].read_bytes()
    assert b"prefers-color-scheme: dark" in drawing and b"<script" not in drawing
    assert b"#1b1f24" in drawing, "text has the colour that the dark scheme changes"


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on a table whose classes are named SCRIPT, FORMULA and IMAGE: the latest one of the current folder."""
    monkeypatch.chdir(tmp_path)
    lines = ["id,label,title,note"]
    for i in range(45):
        label = (SCRIPT, FORMULA, IMAGE.replace('"', '""'))[i % 3]
        lines.append(f's{i},"{label}",words {i % 3} of {i % 5},{"" if i % 4 == 0 else f"note {i % 3}"}')
    Path("t.csv").write_text("\n".join(lines), "utf-8")
    for words in ("prepare table --table t.csv --workers 1", "train --set train.epochs=2 --set train.threads=1"):
        assert mla(*words.split()).code == 0
    return tmp_path


@pytest.mark.slow
def test_every_figure_is_drawn_with_hostile_names(hostile: Path) -> None:
    assert mla("report", "--out", "out/my.html").code == 0
    files = sorted(Path("out/my_figures").iterdir())
    assert [f.suffix for f in files] == [".png", ".svg"] * 10
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files[::2])
    assert all(b"prefers-color-scheme: dark" in f.read_bytes() for f in files[1::2])
    assert not any(b"<script" in f.read_bytes() for f in files)


@pytest.mark.slow
def test_equal_runs_give_equal_bytes(runs: dict[str, Run], tmp_path: Path) -> None:
    for name in ("one", "other"):
        report(runs["mla"], tmp_path / name / "report.html")
    one, other = (
        {f.relative_to(tmp_path / name): f.read_bytes() for f in (tmp_path / name).rglob("*.*")}
        for name in ("one", "other")
    )
    assert one == other and len(one) == 21


# ---------------------------------------------------------------- what it says


def test_the_numbers_are_those_of_the_predictions(runs: dict[str, Run], tmp_path: Path, undrawn) -> None:
    run = runs["mla"]
    page = sections(run, tmp_path, summary, missing, weights)
    p = read_predictions(run.predictions).of_split("test")
    n = len(p.labels)
    for i, m in enumerate(p.modalities):
        right = float((p.logits[:, i].argmax(1) == p.labels).mean())
        assert f"{m} alone{100 * right:.1f} %test accuracy, n = {n}" in page.text
    f = load_run(run)
    fused, labels = f.scores["fused"]
    assert f"fused{100 * (fused.argmax(1) == labels).mean():.1f} %" in page.text
    assert "In training 30.2 % of the entries were taken away (kept_one, seed 0; absent ones: skip)" in page.text
    assert "had the best fused accuracy on val and was scored on test" in page.text
    assert "How much the numbers move with the training seed: this is one run." in page.text
    rates = f.rows[(f.rows["missing_rate"] == 0.5) & (f.rows["metric"] == "accuracy")]
    assert (
        f"With a missing rate of 0.5 at test time (kept_one), fused accuracy is {100 * rates['value'].mean():.1f}"
        in (page.text.replace("\xa0", " "))
    )
    assert sorted(rates["mask_seed"]) == list(range(10))
    assert f"How often each fusion weight (rule entropy) occurs on test, over the {n} samples" in page.text
    assert np.isclose(f.weights.sum(1), 1).all()


def test_the_command_in_the_page_repeats_the_run(runs: dict[str, Run], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = repeat_commands(load_run(runs["mla"]))
    assert mla(*shlex.split(line)[1:]).code == 0
    again = Path("again") / runs["mla"].name / "predictions.parquet"
    assert again.read_bytes() == runs["mla"].predictions.read_bytes()
    assert line in sections(runs["mla"], tmp_path, repeat_section).text


def test_a_method_that_mixes_has_no_weights(runs: dict[str, Run], tmp_path: Path) -> None:
    page = sections(runs["concat"], tmp_path, summary, weights, head)
    assert "concat mixes its modalities inside the network: it has no fusion weights." in page.text
    assert not list(tmp_path.iterdir()), "nothing is drawn"
    assert "With a missing rate of 0.5" in page.text and "Head gradient modification" not in page.text


def test_a_run_that_was_not_trained_here(runs: dict[str, Run], tmp_path: Path) -> None:
    """As an imported one: no history, no leakage report, little in run.json."""
    run = copy_of(runs["mla"], tmp_path, "history.jsonl")
    command = ["mla", "import", "net.pt", "--layout", "mla-released"]
    (run.path / "run.json").write_text(json.dumps({"state": "finished", "command": command, "checkpoint": "best@0"}))
    page = sections(run, tmp_path, summary, learning, head, repeat_section)
    assert "was trained elsewhere, and scored on mfeat" in page.text
    assert "it was not trained here, so there are no learning curves" in page.text
    assert "no leakage report is stored with the run" in page.text
    assert repeat_commands(load_run(run)) == ["mla import net.pt --layout mla-released"]


def test_rows_without_labels_are_counted_and_left_out(runs: dict[str, Run], tmp_path: Path, undrawn) -> None:
    run = copy_of(runs["mla"], tmp_path)
    p = read_predictions(run.predictions)
    p.labels = np.where(np.arange(len(p)) % 3 == 0, -1, p.labels).astype(np.int32)
    p.present[::4, 1], p.logits[::4, 1] = False, np.nan
    p.write(run.predictions)
    page, f = sections(run, tmp_path, summary, weights), load_run(run)
    single = (~p.present[(p.labels >= 0) & (p.splits == "test"), 1]).sum()
    assert f"the other {single} have one, whose weight is 1" in page.text
    assert f"{(p.labels < 0).sum()} of {len(p)} samples have no label; every number leaves them out" in page.text
    kept = (p.labels >= 0) & (p.splits == "test")
    assert len(f.test) == kept.sum() and f"n = {kept.sum()}" in page.text
    p.labels[:] = -1
    p.write(run.predictions)
    with pytest.raises(MlaError, match="has no labelled sample of split `test`"):
        load_run(run)


def test_warnings_and_leakage_are_shown(runs: dict[str, Run], tmp_path: Path) -> None:
    run = copy_of(runs["mla"], tmp_path)
    info = json.loads((run.path / "run.json").read_text())
    info["warnings"] = ["protocol random leaks: <b>3</b> of 9 groups of test are in train too"]
    info["data"]["leakage"]["groups"] = {
        "actor": {"number": {"train": 9, "val": 9, "test": 9}}
        | {pair: {"count": 3, "first": ["<i>actor 7</i>"]} for pair in ("train+test", "val+test", "train+val")}
    }
    (run.path / "run.json").write_text(json.dumps(info))
    page = sections(run, tmp_path, warnings_section, repeat_section)
    assert "1 warning of the run" in page.text and info["warnings"][0] in page.text
    assert "3 of 9 groups by actor of test are in train too (first: <i>actor 7</i>)" in page.text


# ---------------------------------------------------------------- ablations


@pytest.fixture
def ablation(mfeat_store, data_dir: Path, tmp_path: Path, in_process: list[str]) -> Ablation:
    """The default grid, one seed; the modalities alone are read from `late`, and share its rows."""
    recipe = mfeat_recipe(train={"epochs": 1, "select_on": "last"})
    done: Ablation = finish(ablate(Plan(recipe, [], [0], "0,0.3", [0, 1]), data_dir, tmp_path))
    return done


def test_an_ablation_is_read_as_it_was_shown(ablation: Ablation) -> None:
    again = load_grid(ablation.path)
    assert tables.ablation_tables(again.ablation) == tables.ablation_tables(ablation)
    assert list(again.rules) == [s for s in ablation.labels if not s.startswith("unimodal")]
    assert (again.seeds, again.mask_seeds) == ([0], [0, 1])


@pytest.mark.slow
def test_the_page_of_an_ablation(ablation: Ablation, tmp_path: Path, undrawn) -> None:
    written = finish(write_report(ablation.path.name, tmp_path, None, False))
    assert written == ablation.path / "report.html"
    page = Words(written.read_text("utf-8"))
    for wide in tables.ablation_tables(ablation):
        assert wide.title in page.text
        assert all(cell.partition(" ± ")[0] in page.text for row in wide.rows for cell in row)
    assert f"A closer look at one run: {ablation.runs_of[ablation.full][0].name}" in page.text
    assert "One common seed only, so the spread is unknown" in page.text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert (ablation.path / "report_figures" / CLOSER / "calibration.svg").is_file()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c.pop("grid"), "does not say which run belongs to which setting"),
        (lambda c: c["grid"].update(rows=[1]), "is damaged"),
        (lambda c: c["grid"]["rows"][0].update(runs=["../elsewhere"]), "is damaged"),
        (lambda c: c["grid"]["rows"][0].update(runs=["gone"]), "`.*gone` is gone or not finished"),
        (lambda c: [row.update(runs=[]) for row in c["grid"]["rows"]], "no run of .* finished"),
    ],
)
def test_a_damaged_ablation_is_one_error(damage, message: str, tmp_path: Path) -> None:
    rows = [{"setting": "a", "rule": "entropy", "rates": [0.0], "runs": ["gone"]}]
    grid = {"name": "over", "full": "a", "command": [], "mask_seeds": [0], "patterns": [], "failed": [], "rows": rows}
    content = {"settings": {"a": "x"}, "seeds": [0], "runs": [], "grid": grid}
    damage(content)
    (tmp_path / "settings.json").write_text(json.dumps(content))
    with pytest.raises(MlaError, match=message) as error:
        load_grid(tmp_path)
    assert "mla ablate" in error.value.hint


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("run.json", {"state": "finished", "versions": {"torch": 2}}, r"run.json`: `versions.torch`"),
        ("run.json", {"state": "finished", "data": {"test": {}}}, r"run.json`: `data.test.samples`"),
        ("history.jsonl", {"epoch": 1, "lr": "fast"}, r"not a line of this run's history"),
        ("history.jsonl", {"lr": 1}, r"not a line of this run's history"),
    ],
)
def test_a_damaged_run_is_one_error(
    file: str, content: dict, message: str, runs: dict[str, Run], tmp_path: Path, undrawn
) -> None:
    run = copy_of(runs["mla"], tmp_path)
    (run.path / file).write_text(json.dumps(content) + "\n")
    with pytest.raises(MlaError, match=message) as error:
        report(run, tmp_path / "report.html")
    assert "mla train" in error.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["runs"], "nothing is half written"


def test_a_damaged_leakage_report_is_one_error(runs: dict[str, Run], tmp_path: Path) -> None:
    run = copy_of(runs["mla"], tmp_path)
    (run.path / "run.json").write_text(json.dumps({"state": "finished", "data": {"leakage": {"x": 1}}}))
    with pytest.raises(MlaError, match=r"`data.leakage` is damaged"):
        sections(run, tmp_path, repeat_section)


def test_what_cannot_be_reported(runs: dict[str, Run], tmp_path: Path) -> None:
    with pytest.raises(MlaError, match="is a smoke run: its numbers are no results"):
        load_run(runs["smoke"])
    with pytest.raises(MlaError, match="no run at `nothing`"):
        find_report("nothing", tmp_path)
    (tmp_path / "ablate-x").mkdir()
    with pytest.raises(MlaError, match=r"has lost its `settings.json`"):
        find_report("ablate-x", tmp_path)
    assert find_report(runs["mla"].name, runs["mla"].path.parent) == runs["mla"]


def test_nothing_is_replaced_unasked(runs: dict[str, Run], tmp_path: Path, monkeypatch) -> None:
    def run_page(run: Run, folder: Path) -> Iterator[Progress]:
        yield Progress("sections", 1, 1)
        (folder / "hgm.png").write_text("new")
        return "page"

    monkeypatch.setattr("mla_cli.report.page.run_page", run_page)
    out, figures = tmp_path / "my.html", tmp_path / "my_figures"
    words = ["report", runs["one"].path, "--out", out, "--quiet"]
    assert mla(*words).code == 0
    (figures / "seeds.png").write_text("of an ablation's report, which was here before")
    (figures / "mine.png").write_text("my own")
    refused = mla(*words)
    assert refused.code == 1
    assert refused.stderr == (
        f"error: `{out}` exists\nhint: replace it with `--force`, or name another file with `--out`\n"
    )
    replaced = mla(*words, "--force")
    assert (replaced.code, replaced.stdout) == (0, f"{out}\n")
    assert sorted(file.name for file in figures.iterdir()) == ["hgm.png", "mine.png"]
    assert (figures / "mine.png").read_text() == "my own"
    (tmp_path / "file").write_text("")
    for wrong, message in (
        ("x.pdf", "error: `x.pdf` does not end with .html\nhint: write `--out x.pdf.html`\n"),
        (".", "error: `.` is a folder\nhint: name a file: `--out report.html`\n"),
        (tmp_path / "file" / "x.html", "hint: name a file in a folder that can be written with `--out`\n"),
    ):
        failed = mla("report", runs["one"].path, "--out", wrong)
        assert failed.code == 1 and failed.stderr.endswith(message)


# ---------------------------------------------------------------- parts


@given(
    st.integers(2, 6).flatmap(
        lambda c: st.lists(st.lists(st.integers(0, 9), min_size=c, max_size=c), min_size=c, max_size=c)
    )
)
def test_confused_pairs_are_the_largest_cells_off_the_diagonal(cells: list[list[int]]) -> None:
    matrix, names = np.array(cells), [f"c{i}" for i in range(len(cells))]
    found = confused_pairs(matrix, names)
    counts = sorted((n for r, row in enumerate(cells) for c, n in enumerate(row) if r != c and n), reverse=True)
    assert [int(pair[2]) for pair in found] == counts[: len(found)]
    assert len(found) == min(12, len(counts))
    for true, predicted, count, share in found:
        r, c = names.index(true), names.index(predicted)
        assert r != c and matrix[r, c] == int(count)
        assert share == f"{100 * matrix[r, c] / matrix[r].sum():.1f}"


def test_a_hundred_and_one_classes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[list[str]] = []

    def saved(figure, folder: Path, name: str) -> list[Path]:
        names.append([label.get_text() for label in figure.axes[0].get_yticklabels()])
        return []

    monkeypatch.setattr(score_figures, "save", saved)
    rng = np.random.default_rng(0)
    scores = (rng.normal(size=(500, 101)).astype(np.float32), rng.integers(0, 101, 500))
    classes = [f"dish {i}" for i in range(101)]
    score_figures.confusion_figures({"visual": scores, "text": scores, "fused": scores}, classes, tmp_path)
    assert names == [classes, []], "the large one names them, the small ones cannot"
    assert len(confused_pairs(confusion(*scores), classes)) == 12


def test_a_table_without_rows_has_its_heads() -> None:
    budget = budget_table(Ablation(Path("a"), pd.DataFrame(), {}, "mla", [], 0))  # as of runs of one epoch
    shown = table(At(2), "t", budget)
    assert [h["scope"] for h in Words(shown).all("th")] == ["col"] * 5
    assert "takes two epochs at the least" in Words(shown).text


def test_cells_and_sentences_are_escaped() -> None:
    wide = Wide(
        'a <b> "title"', ["x<y", "n"], [["<i>row</i>", "1.0 ± 0.5"], ["other", "2.0 [1.0, 3.0]"]], ["<u>"], {(0, 1)}
    )
    shown = table(At(2), "t", wide)
    words = Words(shown)
    assert "<i>" not in shown and "<b>" not in shown
    assert "<i>row</i>" in words.text and 'a <b> "title"' in words.text and "1.0 ± 0.5" in words.text
    assert len(words.all("strong")) == 1 and len(words.all("u")) == 0
    assert [h["scope"] for h in words.all("th")] == ["col", "col", "row", "row"]
    assert paragraph("`<b>` is 5 % \x1b[31m") == "<p><code>&lt;b&gt;</code> is 5&nbsp;% \\x1b[31m</p>"


@pytest.mark.parametrize(("points", "kind"), [(400, None), (1200, "large")])
def test_large_drawings_keep_their_size(points: int, kind: str | None, tmp_path: Path) -> None:
    drawing = tmp_path / "x.svg"
    drawing.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" width="{points}pt" height="72pt"></svg>')
    words = Words(figure([drawing], 'what "it" shows', "`x` of y"))
    (image,) = words.all("img")
    assert (image.get("class"), image["width"], image["height"]) == (kind, str(round(points * 4 / 3)), "96")
    assert image["alt"] == 'what "it" shows' and words.text == "x of y x.png, .svg"
    assert figure([], "nothing", "nothing") == ""


@pytest.mark.parametrize(
    ("name", "drawn"),
    [("visual", "visual"), ("_x", " _x"), ("a\nb", "a\\nb"), ("\u732b", style.UNDRAWN), ("x" * 40, "x" * 27 + "…")],
)
def test_names_in_figures(name: str, drawn: str) -> None:
    assert style.name_of(name) == drawn


def test_figures_are_readable_in_both_schemes() -> None:
    """Text 4.5 to 1 on its ground, lines that a dark page would swallow 3 to 1 (WCAG 2.2)."""
    dark = {name.lower(): other for name, other in style.DARK.items()}
    assert contrast(style.INK, style.PAPER) > 7 and contrast(dark[style.INK], dark[style.PAPER]) > 7
    for colour in style.COLOURS:
        assert contrast(dark.get(colour.lower(), colour), dark[style.PAPER]) > 3, colour
    assert len({tuple(map(str, style.line_look(i).values())) for i in range(49)}) == 49


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, relative luminance of `#rrggbb`."""
    lights = []
    for colour in (one, other):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        lights.append(float(np.dot(linear, (0.2126, 0.7152, 0.0722))))
    low, high = sorted(lights)
    return (high + 0.05) / (low + 0.05)


@pytest.fixture
def plot() -> Iterator:
    with style.plotting() as plt:
        yield plt


def test_numbers_of_a_logarithmic_axis_are_plain(plot) -> None:
    figure, axes = plot.subplots()
    axes.plot([1, 2], [0.002, 30])
    style.log_scale(axes)
    figure.canvas.draw()
    shown = [label.get_text() for label in axes.get_yticklabels() if label.get_text()]
    assert {"0.01", "0.1", "1", "10"} <= set(shown)
    assert not [text for text in shown if re.search(r"[$e\\]", text)]

"""The page: sections, a table of contents, and the file with its figures, written whole.

The page holds no script, and its content policy forbids every request: what it shows is in the file.
"""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from string import Template

from mla_cli import __version__
from mla_cli.engine.events import Progress, Steps
from mla_cli.engine.report import find_report, load_grid, load_run
from mla_cli.engine.run import Run
from mla_cli.errors import MlaError
from mla_cli.files import make_folder, sync_folder, unwritable, write_text
from mla_cli.report import ablation_sections, closing, run_sections, training_sections
from mla_cli.report.tags import At, section, text

HERE = Path(__file__).parent
RUN_SECTIONS = (
    run_sections.summary,
    closing.warnings_section,
    run_sections.result_tables,
    training_sections.learning,
    run_sections.missing,
    run_sections.weights,
    run_sections.calibration,
    run_sections.confusions,
    training_sections.balance,
    training_sections.gap,
    training_sections.head,
    closing.repeat_section,
)
# figures' files, to tell them from what else lies in the folder
FIGURES = (
    *("learning_curves", "learning_curves_by_setting", "missing_rate", "train_test_rates", "subsets", "seeds"),
    *("fusion_weights", "calibration", "confusion_fused", "confusion_alone", "balance", "modality_gap", "hgm"),
)
CLOSER = "one_run"  # folder of the figures about an ablation's one run


def write_report(source: str | None, run_dir: Path, out: Path | None, force: bool) -> Steps[Path]:
    """Write the report of a run or an ablation; the value is the HTML file. Its figures go to NAME_figures beside it.

    Raises MlaError for a damaged or a smoke run, and where a report is already there and `force` is not given.
    """
    found = find_report(source, run_dir)
    place = found.path if isinstance(found, Run) else found
    out = out or place / "report.html"
    figures = target_of_figures(out, force)
    drawn = figures.with_name(f".{figures.name}.{os.getpid()}.part")
    try:
        make_folder(drawn)
    except MlaError as error:
        raise MlaError(error.message, "name a file in a folder that can be written with `--out`") from error
    try:
        if isinstance(found, Run):
            page = yield from run_page(found, drawn)
        else:
            page = yield from ablation_page(found, drawn)
        replace_figures(drawn, figures)
    finally:
        shutil.rmtree(drawn, ignore_errors=True)
    write_text(out, page)
    return out


def target_of_figures(out: Path, force: bool) -> Path:
    """The folder of a page's figures. Raises MlaError for a page that is no HTML file, or that is there already."""
    if out.is_dir():
        raise MlaError(f"`{out}` is a folder", f"name a file: `--out {out / 'report.html'}`")
    if out.suffix.lower() not in (".html", ".htm"):
        raise MlaError(f"`{out}` does not end with .html", f"write `--out {out}.html`")
    figures = out.with_name(f"{out.stem}_figures")
    there = next((path for path in (out, figures) if path.exists()), None)
    if there is not None and not force:
        raise MlaError(f"`{there}` exists", "replace it with `--force`, or name another file with `--out`")
    return figures


def replace_figures(drawn: Path, figures: Path) -> None:
    """Move the new figures to their folder, and remove those of an earlier report that were not drawn again."""
    try:
        new = [file.relative_to(drawn) for file in sorted(drawn.rglob("*.*")) if file.is_file()]
        old = [file.relative_to(figures) for part in (figures, figures / CLOSER) for file in part.glob("*.*")]
        for file in old:
            if file not in new and file.stem in FIGURES and file.suffix in (".png", ".svg"):
                (figures / file).unlink()
        for file in new:
            (figures / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(drawn / file, figures / file)
        for place in (figures, figures / CLOSER):
            sync_folder(place)
    except OSError as error:
        raise unwritable(figures, error) from error


def run_page(run: Run, folder: Path) -> Steps[str]:
    """The page of one run."""
    total = len(RUN_SECTIONS)
    yield Progress("sections", 0, total)
    f = load_run(run)
    parts = []
    for i, build in enumerate(RUN_SECTIONS, 1):
        parts.append(build(f, folder, At(2)))
        yield Progress("sections", i, total)
    return page(f"{f.recipe.method.name} on {f.test.facts['dataset']}", f"Report of the run {run.name}", parts)


def ablation_page(path: Path, folder: Path) -> Steps[str]:
    """The page of an ablation, with a closer look at one run of the setting that the others are compared with."""
    total = len(ablation_sections.SECTIONS) + len(RUN_SECTIONS)
    yield Progress("sections", 0, total)
    g = load_grid(path)
    ablation = g.ablation
    f = load_run((ablation.runs_of.get(ablation.full) or ablation.runs)[0])
    done, parts, closer = 0, [], []
    for build in ablation_sections.SECTIONS:
        parts.append(build(g, folder, At(2)))
        yield Progress("sections", done := done + 1, total)
    for inside in RUN_SECTIONS:
        closer.append(inside(f, folder / CLOSER, At(3, "run-")))
        yield Progress("sections", done := done + 1, total)
    parts.append(section(At(2), "closer", f"A closer look at one run: {f.run.name}", *closer))
    return page(f"Ablation on {ablation.rows.iloc[0]['dataset']}", f"Report of {path.name}", parts)


def page(title: str, subtitle: str, parts: Sequence[str]) -> str:
    """The whole document. parts: sections as HTML; empty ones are left out."""
    links = re.findall(r'<h2 id="([\w-]+)">(.*?)</h2>', "".join(parts))
    contents = "".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading in links)
    return Template((HERE / "page.html").read_text("utf-8")).substitute(
        title=text(title),
        subtitle=text(subtitle),
        style=(HERE / "page.css").read_text("utf-8"),
        contents=contents,
        parts="\n".join(part for part in parts if part),
        version=text(__version__),
    )

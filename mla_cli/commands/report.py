"""`mla report`."""

from pathlib import Path
from typing import Annotated

import typer

from mla_cli.app import app, command
from mla_cli.options import RUN_DIR, Debug, Quiet, RunDir


@command(app, "report", "mla report runs/emoji-mla-s0-f0-b1a01ce3 --out emoji.html")
def report_command(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN_OR_ABLATION", help="Folder or name; default: the latest run.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="HTML file; default: report.html in its folder.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the report that is there.")] = False,
    run_dir: RunDir = RUN_DIR,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write one HTML file about a finished run or an ablation, which opens from disk, and its figures beside it."""
    from mla_cli import render
    from mla_cli.report.page import write_report

    written = render.show(write_report(run, run_dir, out, force), quiet)
    render.say(f"figures: {written.with_name(written.stem + '_figures')}", quiet)
    render.print_lines([str(written)])

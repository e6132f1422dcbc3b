"""`mla check`."""

from typing import Annotated

import typer

from mla_cli.app import app, command
from mla_cli.options import DATA_DIR, RUN_DIR, DataDir, Debug, Format, Quiet, RunDir


@command(app, "check", "mla check runs/emoji-mla-s0-f0-3fa9c1d2")
def check_command(
    path: Annotated[
        str | None,
        typer.Argument(help="A run, prepared set, ablation, recipe file, or a folder of them; default: all, and mla."),
    ] = None,
    output_format: Format = "table",
    data_dir: DataDir = DATA_DIR,
    run_dir: RunDir = RUN_DIR,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare files with their checksums, and look at the installation; exit code 1 if something is broken."""
    from mla_cli import render
    from mla_cli.checking import is_broken, print_check
    from mla_cli.engine.check import check

    render.check_format(output_format)
    found = render.show(check(path, data_dir, run_dir), quiet)
    print_check(found, output_format)
    raise typer.Exit(1 if is_broken(found) else 0)

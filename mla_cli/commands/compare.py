"""`mla compare`."""

from typing import Annotated

import typer

from mla_cli.app import app, command
from mla_cli.options import DATA_DIR, RUN_DIR, DataDir, Debug, Format, Quiet, Reference, RunDir


@command(app, "compare", "mla compare emoji-mla-s0-f0-3fa9c1d2 emoji-late-s0-f0-77aa01bc")
def compare_command(
    runs: Annotated[
        list[str], typer.Argument(help="Runs by name or path, or ablations' folders; the first is compared with.")
    ],
    missing_rates: Annotated[str, typer.Option("--missing-rates", help="At test time: 0,0.2,0.4.")] = "0",
    mask_seeds: Annotated[str, typer.Option("--mask-seeds", help="Draws of the absences: 0..9 or 0,1,2.")] = "0..9",
    split: Annotated[str, typer.Option("--split", help="val or test.")] = "test",
    reference: Reference = False,
    output_format: Format = "table",
    data_dir: DataDir = DATA_DIR,  # every command takes it; the runs' predictions are enough
    run_dir: RunDir = RUN_DIR,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Set finished runs side by side; those that differ in the seed only become one row."""
    from mla_cli import render, tables
    from mla_cli.comparison import comparison_tables
    from mla_cli.engine import compare as engine
    from mla_cli.ledger import print_reference

    render.check_format(output_format)
    found = engine.compare_runs(runs, run_dir, engine.request(split, missing_rates, mask_seeds))
    tables.print_tables(comparison_tables(found), found.tidy(), output_format)
    if reference:
        print_reference(found.rows, output_format)

"""`mla status`."""

from mla_cli.app import app, command
from mla_cli.options import DATA_DIR, RUN_DIR, DataDir, Debug, Format, Quiet, RunDir


@command(app, "status", "mla status --run-dir runs")
def status_command(
    output_format: Format = "table",
    data_dir: DataDir = DATA_DIR,
    run_dir: RunDir = RUN_DIR,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List runs and prepared sets with their state, and what continues the unfinished ones."""
    from mla_cli import render, tables
    from mla_cli.engine.status import status
    from mla_cli.overview import status_rows, status_tables

    render.check_format(output_format)
    found = status(run_dir, data_dir)
    tables.print_tables(status_tables(found), status_rows(found), output_format)

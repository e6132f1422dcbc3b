"""`mla eval`."""

from pathlib import Path
from typing import Annotated

import typer

from mla_cli.app import app, command
from mla_cli.options import DATA_DIR, RUN_DIR, DataDir, Debug, Format, Quiet, RunDir


@command(app, "eval", "mla eval --missing-rate 0.1 --missing-rate 0.3")
def eval_command(
    run: Annotated[str | None, typer.Argument(help="Run folder or name; default: the latest.")] = None,
    missing_rate: Annotated[
        list[str] | None, typer.Option("--missing-rate", help="Fraction, or audio=0.5,text=0; repeat.")
    ] = None,
    pattern: Annotated[
        list[str] | None, typer.Option("--pattern", help="kept_one, bernoulli, per_modality or subset; repeat.")
    ] = None,
    mask_seeds: Annotated[str, typer.Option("--mask-seeds", help="Draws of the absences: 0..9 or 0,1,2.")] = "0..9",
    fusion: Annotated[
        list[str] | None, typer.Option("--fusion", help="Fusion rule; repeat. Default: the run's.")
    ] = None,
    fusion_weights: Annotated[
        str | None, typer.Option("--fusion-weights", help="For --fusion fixed: audio=0.6,text=0.4.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option("--metrics", help="Metrics by name, such as nll,ece,recall, or all.")
    ] = None,
    intervals: Annotated[
        bool | None,
        typer.Option("--intervals/--no-intervals", help="95 % intervals; default: where no absence is drawn."),
    ] = None,
    temperature: Annotated[
        bool, typer.Option("--temperature", help="Also with temperatures fitted on val: NLL and ECE before and after.")
    ] = False,
    split: Annotated[str, typer.Option("--split", help="val or test.")] = "test",
    dataset: Annotated[str | None, typer.Option("--dataset", help="Score the run on another prepared set.")] = None,
    table: Annotated[Path | None, typer.Option("--table", help="Score the rows of a table, labelled or not.")] = None,
    root: Annotated[Path | None, typer.Option("--root", help="Where the paths in --table start.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Predictions of --table.")] = Path("predictions.parquet"),
    diagnostics: Annotated[
        bool, typer.Option("--diagnostics", help="What training did to each modality, epoch by epoch.")
    ] = False,
    linear_probe: Annotated[
        bool, typer.Option("--linear-probe", help="How well a linear classifier reads each modality's features.")
    ] = False,
    output_format: Format = "table",
    data_dir: DataDir = DATA_DIR,
    run_dir: RunDir = RUN_DIR,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Evaluate a finished run at any missing rate and fusion rule, from its stored predictions."""
    from mla_cli import render, tables
    from mla_cli.engine.evaluate import evaluate
    from mla_cli.engine.integrity import changed_since
    from mla_cli.engine.latest import find_run
    from mla_cli.engine.request import notes_of, parse_request

    render.check_format(output_format)
    if "subset" in (pattern or ()) and missing_rate:
        raise typer.BadParameter("pattern subset takes no rate: it scores every subset on the whole split")
    chosen = find_run(run, run_dir)
    render.say(f"evaluating {chosen.path}", quiet)
    for text in changed_since(chosen, data_dir):
        render.say(f"warning: {text}")
    if linear_probe:
        if missing_rate or pattern or fusion or dataset or table or diagnostics or metrics or temperature:
            raise typer.BadParameter("--linear-probe reads the run's own data: it goes with RUN, --split and --format")
        from mla_cli.engine.probe import probe
        from mla_cli.probing import print_probe

        print_probe(render.show(probe(chosen, data_dir, split), quiet), output_format)
        return
    if diagnostics:
        if missing_rate or pattern or fusion or dataset or table or metrics or temperature:
            raise typer.BadParameter("--diagnostics shows the run's training: it goes with RUN and --format only")
        from mla_cli.diagnosis import print_diagnosis

        print_diagnosis(chosen, output_format, quiet)
        return
    if table is not None:
        if metrics or temperature or intervals is not None:
            raise typer.BadParameter("--table predicts rows without labels, so there is no metric to count")
        from mla_cli.engine.rescore import score_table

        render.print_lines(render.show(score_table(chosen, table, root, out), quiet))
        return
    request = parse_request(
        split, missing_rate, pattern, mask_seeds, fusion, fusion_weights, metrics, intervals, temperature
    )
    predictions = None
    if dataset is not None:
        from mla_cli.engine.rescore import score_dataset

        predictions = render.show(score_dataset(chosen, dataset, data_dir), quiet)
    rows = evaluate(chosen, request, predictions)
    for note in notes_of(request, rows):
        render.say(note)
    tables.print_eval(rows, output_format)

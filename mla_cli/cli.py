"""The commands: options in, one engine call, the result to `render`. Heavy imports stay inside the commands."""

import functools
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mla_cli import __version__
from mla_cli.errors import MlaError
from mla_cli.options import DataDir, Debug, Device, Force, Format, Quiet, RecipeName, RunDir, Sets, Smoke, SplitFile

app = typer.Typer(
    name="mla",
    help="Multimodal learning by alternating unimodal adaptation (MLA, CVPR 2024).",
    epilog="Start with: mla ablate",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(
    help="List data sets, recipes, methods and encoders, or copy a recipe to edit it.",
    epilog="Example: mla recipes copy emoji mine.yaml",
    invoke_without_command=True,
)
app.add_typer(recipes_app, name="recipes")

DATA_DIR, RUN_DIR = Path("data"), Path("runs")
SMOKE = ("train.epochs=1", "train.max_rounds=2", "train.batch_size=32", "dataset.limit=64")


def command(group: typer.Typer, name: str, example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command that turns MlaError into two lines and exit code 1, and Ctrl-C into exit code 130."""

    def register(body: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(body)
        def run(*args: Any, **options: Any) -> None:
            from mla_cli import render

            try:
                body(*args, **options)
            except MlaError as error:
                if options.get("debug"):
                    raise
                render.fail(error)
                raise typer.Exit(1) from error
            except KeyboardInterrupt:
                render.say(f"interrupted; what is finished is kept. To go on: {resuming(name)}")
                raise typer.Exit(130) from None
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of our pipe left: nothing more to say
                raise typer.Exit(0) from None

        group.command(name, epilog=f"Example: {example}")(run)
        return run

    return register


def resuming(name: str) -> str:
    """The command that goes on where this one was interrupted; only `train` has to be told that it may."""
    words = ["mla", *sys.argv[1:]]
    if name == "train":
        words = [word for word in words if word not in ("--force", "--resume")] + ["--resume"]
    return shlex.join(words)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"mla {__version__}")
        raise typer.Exit


@command(app, "prepare", "mla prepare digits")
def prepare_command(
    name: Annotated[str, typer.Argument(help="Data set; `mla recipes` lists them.")],
    root: Annotated[Path | None, typer.Option("--root", help="Raw data; else $MLA_RAW/NAME, else raw/NAME.")] = None,
    recipe: RecipeName = None,
    protocol: Annotated[str | None, typer.Option("--protocol", help="Split protocol to check and report.")] = None,
    split_file: SplitFile = None,
    sets: Sets = None,
    check: Annotated[bool, typer.Option("--check", help="Verify every raw file and list all problems.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be built, build nothing.")] = False,
    force: Force = False,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes; default all cores.")] = None,
    file_timeout: Annotated[
        float, typer.Option("--file-timeout", min=0.1, help="Seconds after which a sample counts as hanging.")
    ] = 120.0,
    max_bad: Annotated[float, typer.Option("--max-bad", min=0, max=1, help="Largest share of bad samples.")] = 0.01,
    table: Annotated[Path | None, typer.Option("--table", help="NAME table: your own table of samples.")] = None,
    store: Annotated[str | None, typer.Option("--name", help="Name of the prepared set; default: the table's.")] = None,
    modality: Annotated[
        list[str] | None, typer.Option("--modality", metavar="COLUMN=KIND", help="Kind of a table's column; repeat.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option("--classes", help="kinetics_sounds: ks31, ks32, or a file with one class a line.")
    ] = None,
    allow_outside: Annotated[bool, typer.Option("--allow-outside", help="Admit paths outside --root.")] = False,
    data_dir: DataDir = DATA_DIR,
    run_dir: RunDir = RUN_DIR,  # every command takes it; preparing makes no runs
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Verify raw data and build the feature store."""
    from mla_cli import render, tables
    from mla_cli.engine import prepare as engine
    from mla_cli.engine.choose import recipe_for_dataset, scan_options
    from mla_cli.engine.inspection import inspect, split_report

    options = scan_options(name, table, modality, allow_outside, classes)
    store, root = (store or table.stem, root or table.parent) if table else (store, root)
    flags = {"dataset.protocol": protocol, "dataset.store": store, "dataset.split_file": split_file}
    chosen = recipe_for_dataset(name, recipe, sets or (), flags)
    if check or dry_run:
        looking = inspect(name, data_dir, chosen, root, check, options, workers, file_timeout)
        report = render.show(looking, quiet)
        render.print_lines(tables.inspection_lines(report))
        raise typer.Exit(1 if report.problems else 0)
    building = engine.prepare(name, data_dir, chosen, root, None, force, workers, max_bad, options, file_timeout)
    done = render.show(building, quiet)
    render.print_lines(tables.prepared_lines(done, split_report(done.path, chosen)))


@command(app, "train", "mla train --recipe emoji --no-hgm --seed 1")
def train_command(
    recipe: RecipeName = None,
    method: Annotated[str | None, typer.Option("--method", "-m", help="Training method.")] = None,
    hgm: Annotated[bool | None, typer.Option("--hgm/--no-hgm", help="Head gradient modification on or off.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of every random choice.")] = None,
    split_file: SplitFile = None,
    sets: Sets = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint, if there is one.")] = False,
    force: Force = False,
    smoke: Smoke = False,
    device: Device = "auto",
    output_format: Format = "table",
    data_dir: DataDir = DATA_DIR,
    run_dir: RunDir = RUN_DIR,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train one run; without --recipe on the data set prepared last, or else the built-in one."""
    from mla_cli import render, tables
    from mla_cli.engine.choose import choose_recipe
    from mla_cli.engine.train import train

    render.check_format(output_format)
    flags = {"method.name": method, "seed": seed, "dataset.split_file": split_file}
    chosen, why = choose_recipe(recipe, data_dir, [*(sets or ()), *(SMOKE if smoke else ())], flags, hgm)
    render.say(why, quiet)
    run = render.show(train(chosen, data_dir, run_dir, device, resume=resume, force=force or smoke), quiet)
    tables.write_markdown(run)
    tables.print_run(run, output_format)


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
    split: Annotated[str, typer.Option("--split", help="val or test.")] = "test",
    dataset: Annotated[str | None, typer.Option("--dataset", help="Score the run on another prepared set.")] = None,
    table: Annotated[Path | None, typer.Option("--table", help="Score the rows of a table, labelled or not.")] = None,
    root: Annotated[Path | None, typer.Option("--root", help="Where the paths in --table start.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Predictions of --table.")] = Path("predictions.parquet"),
    diagnostics: Annotated[
        bool, typer.Option("--diagnostics", help="What training did to each modality, epoch by epoch.")
    ] = False,
    output_format: Format = "table",
    data_dir: DataDir = DATA_DIR,
    run_dir: RunDir = RUN_DIR,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Evaluate a finished run at any missing rate and fusion rule, from its stored predictions."""
    from mla_cli import render, tables
    from mla_cli.engine import evaluate as engine
    from mla_cli.engine.run import find_run

    render.check_format(output_format)
    if "subset" in (pattern or ()) and missing_rate:
        raise typer.BadParameter("pattern subset takes no rate: it scores every subset on the whole split")
    chosen = find_run(run, run_dir)
    render.say(f"evaluating {chosen.path}", quiet)
    if diagnostics:
        from mla_cli.diagnosis import print_diagnosis

        print_diagnosis(chosen, output_format, quiet)
        return
    if table is not None:
        from mla_cli.engine.rescore import score_table

        render.print_lines(render.show(score_table(chosen, table, root, out), quiet))
        return
    request = engine.parse_request(split, missing_rate, pattern, mask_seeds, fusion, fusion_weights)
    predictions = None
    if dataset is not None:
        from mla_cli.engine.rescore import score_dataset

        predictions = render.show(score_dataset(chosen, dataset, data_dir), quiet)
    rows = engine.evaluate(chosen, request, predictions)
    for warning in engine.warnings_of(request):
        render.say(f"warning: {warning}")
    tables.print_eval(rows, output_format)


@command(app, "ablate", "mla ablate --recipe emoji --over method.hgm=off,rls --seeds 0,1,2")
def ablate_command(
    recipe: RecipeName = None,
    sets: Sets = None,
    over: Annotated[list[str] | None, typer.Option("--over", metavar="KEY=V1,V2", help="Grid axis; repeat.")] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="0,1,2 or 0..4.")] = "0,1,2",
    preset: Annotated[
        str | None, typer.Option("--preset", help="A named grid: table1, table3, hgm or missing.")
    ] = None,
    significance: Annotated[
        bool, typer.Option("--significance", help="Mark, in table1, what differs from MLA on the same test items.")
    ] = False,
    missing_rates: Annotated[str | None, typer.Option("--missing-rates", help="At test time: 0,0.2,0.4.")] = None,
    mask_seeds: Annotated[str, typer.Option("--mask-seeds", help="Draws of the absences: 0..9 or 0,1,2.")] = "0..9",
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Runs at a time; default all cores.")] = None,
    smoke: Smoke = False,
    device: Device = "auto",
    output_format: Format = "table",
    data_dir: DataDir = DATA_DIR,
    run_dir: RunDir = RUN_DIR,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare methods and switches over seeds; without options the whole story on built-in data."""
    from mla_cli import render, tables
    from mla_cli.engine import ablate as engine
    from mla_cli.engine.choose import choose_recipe
    from mla_cli.engine.grids import parse_over
    from mla_cli.engine.numbers import parse_numbers

    render.check_format(output_format)
    if significance and preset != "table1":
        raise typer.BadParameter("--significance marks the table of --preset table1")
    chosen, why = choose_recipe(recipe or "emoji", data_dir, [*(sets or ()), *(SMOKE if smoke else ())])
    render.say(why, quiet)
    axes = [parse_over(text) for text in over or ()]
    numbers, draws = parse_numbers(seeds, "--seeds"), parse_numbers(mask_seeds, "--mask-seeds")
    plan = engine.Plan(chosen, axes, numbers, missing_rates, draws, preset, significance)
    done = render.show(engine.ablate(plan, data_dir, run_dir, workers, device), quiet)
    tables.write_ablation(done)
    tables.print_ablation(done, output_format, quiet)
    raise typer.Exit(1 if done.failed else 0)


@recipes_app.callback()
def recipes_list(context: typer.Context) -> None:
    """List data sets, recipes, methods and encoders, or copy a recipe to edit it."""
    if context.invoked_subcommand is None:
        from mla_cli import render, tables

        render.print_lines(tables.registry_lines())


@command(recipes_app, "copy", "mla recipes copy emoji mine.yaml")
def recipes_copy(
    name: Annotated[str, typer.Argument(help="A shipped recipe, or a prepared data set.")],
    target: Annotated[Path, typer.Argument(help="The YAML file to write.")],
    force: Force = False,
    data_dir: DataDir = DATA_DIR,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Copy a recipe, with its comments, to a file of your own."""
    from mla_cli import render
    from mla_cli.engine.choose import copy_recipe

    copy_recipe(name, target, data_dir, force)
    render.say(f"wrote {target}; run it with: mla train --recipe {target}", quiet)


def main() -> None:
    """The console script `mla`."""
    app()

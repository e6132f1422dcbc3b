"""What every report ends with: warnings, how to repeat it, the recipe, where it ran, what its splits share."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from mla_cli import registry
from mla_cli.data.leakage import leakage_lines
from mla_cli.engine.report import DataFacts, RunFacts
from mla_cli.engine.run import Run
from mla_cli.errors import MlaError
from mla_cli.recipe import dump_yaml
from mla_cli.render import Wide, counted
from mla_cli.report.tags import At, bullets, code, details, paragraph, section, table

IMPORT = "import"  # the command that makes runs which were not trained here


def command_line(words: Sequence[str]) -> str:
    """A recorded `sys.argv` as it is typed."""
    return shlex.join(["mla", *words[1:]])


def warnings_section(f: RunFacts, folder: Path, at: At) -> str:
    """What the run warned of; nothing for none."""
    warnings = f.record.warnings
    if not warnings:
        return ""
    title = f"{counted(len(warnings), 'warning')} of the run"
    return section(at, "warnings", title, bullets(warnings, "warnings"))


def repeat_commands(f: RunFacts) -> list[str]:
    """The lines that train the run again, to the same bytes on the same machine."""
    recipe, recorded = f.recipe, f.record.command
    if recorded[1:2] == [IMPORT]:
        return [command_line(recorded)]
    where = ["--recipe", str(f.run.recipe_file), "--data-dir", f.record.data_dir]
    lines = []
    if not getattr(registry.load("datasets", recipe.dataset.name), "BUILT_IN", False):
        own = ["--table", "TABLE.csv", "--name", recipe.store] if recipe.dataset.name == "table" else ["--root", "RAW"]
        lines.append(shlex.join(["mla", "prepare", recipe.dataset.name, *own, *where]))
    threads = [] if recipe.train.threads == f.record.threads else ["--set", f"train.threads={f.record.threads}"]
    again = ["mla", "train", *where, "--run-dir", "again", "--device", f.record.device.partition(":")[0], *threads]
    return [*lines, shlex.join(again)]


def repeat_section(f: RunFacts, folder: Path, at: At) -> str:
    """Commands, recipe, environment and leakage of one run."""
    name = f.run.recipe_file
    return section(
        at,
        "repeat",
        "How to repeat it",
        paragraph(
            f"This trains the run again, into `again/{f.run.name}`. On the same machine it gives the same bytes:"
        ),
        code("\n".join(repeat_commands(f)), "commands that repeat the run"),
        paragraph(f"The recipe is `{name}`, and below. The command that was typed then:"),
        code(command_line(f.record.command), "the command as typed"),
        details("Complete recipe (YAML)", code(dump_yaml(f.recipe), "recipe")),
        table(at, "environment", environment(f)),
        paragraph("What the splits share:"),
        bullets(leakage(f.run, f.record.data)),
    )


def environment(f: RunFacts) -> Wide:
    """Where the run was trained."""
    record = f.record
    facts = {
        "device": record.device,
        "CPU threads": str(record.threads),
        "precision": f.recipe.train.precision,
        "machine": record.host,
        **record.versions,
        "data fingerprint": record.data_fingerprint,
        "recipe hash": record.hash,
        "weights scored": record.checkpoint,
    }
    rows = [[name, value] for name, value in facts.items() if value]
    return Wide("Where it ran", ["what", "value"], rows, ["the processor's model is not recorded in run.json"])


def leakage(run: Run, data: DataFacts) -> list[str]:
    """The stored leakage report and notes of the split, in words. Raises MlaError where they are damaged."""
    if data.leakage is None:
        return ["no leakage report is stored with the run"]
    try:
        return [*data.split_notes, *leakage_lines(data.leakage)]
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise MlaError(f"`{run.path / 'run.json'}`: its `data.leakage` is damaged", run.start_again) from error

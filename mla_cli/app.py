"""The Typer application, and what every command shares: how errors and interruptions end it."""

import functools
import os
import shlex
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from mla_cli import __version__
from mla_cli.errors import MlaError
from mla_cli.files import DISK_FULL, NO_ACCESS, no_access, unwritable
from mla_cli.signals import Terminated, interruptions

app = typer.Typer(
    name="mla",
    help="Multimodal learning by alternating unimodal adaptation (MLA, CVPR 2024).",
    epilog="Start with: mla ablate",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def command(group: typer.Typer, name: str, example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command, `guarded`."""

    def register(body: Callable[..., None]) -> Callable[..., None]:
        run = guarded(name)(body)
        group.command(name, epilog=f"Example: {example}")(run)
        return run

    return register


def guarded(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn MlaError into two lines and exit code 1, Ctrl-C and SIGTERM into 130 and 143."""

    def guard(body: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(body)
        def run(*args: Any, **options: Any) -> None:
            from mla_cli import render

            try:
                with interruptions():
                    body(*args, **options)
                    sys.stdout.flush()  # here, where a full disk can still be told
            except MlaError as error:
                if options.get("debug"):
                    raise
                render.fail(error)
                raise typer.Exit(1) from error
            except KeyboardInterrupt as stop:
                render.say(f"interrupted; what is finished is kept. To go on: {resuming(name)}")
                raise typer.Exit(143 if isinstance(stop, Terminated) else 130) from None
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of our pipe left: nothing more to say
                raise typer.Exit(0) from None
            except OSError as error:
                if error.errno in NO_ACCESS and error.filename and not options.get("debug"):
                    render.fail(no_access(error))
                    raise typer.Exit(1) from error
                if error.errno not in DISK_FULL:
                    raise
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer would fail again
                render.fail(unwritable(error.filename or "standard output", error))
                raise typer.Exit(1) from None

        return run

    return guard


def program() -> list[str]:
    """What this process was started with: `mla`, or torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ["mla"]
    here = os.environ["LOCAL_WORLD_SIZE"]
    nodes = int(os.environ["WORLD_SIZE"]) // int(here)
    several = ["--nnodes", str(nodes)] if nodes > 1 else []  # and where the nodes meet, which is not known here
    return ["torchrun", *several, "--nproc-per-node", here, "-m", "mla_cli"]


def resuming(name: str, without: str | None = None) -> str:
    """The command that goes on where this one was interrupted; only `train` has to be told that it may.

    without: an option that is left out, with its value.
    """
    words, given = program(), iter(sys.argv[1:])
    for word in given:
        if word == without:
            next(given, None)
        elif without is None or not word.startswith(f"{without}="):
            words.append(word)
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

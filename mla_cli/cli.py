"""All commands, in the order of `mla --help`.

Each is one file below `commands`: options in, one engine call, the result to `render`. Heavy imports stay inside them.
"""

import importlib
import io
import sys

from mla_cli.app import app

__all__ = ["COMMANDS", "app", "main"]

COMMANDS = (
    "prepare",
    "train",
    "eval",
    "ablate",
    "compare",
    "diff",
    "status",
    "check",
    "report",
    "recipes",
    "import_checkpoint",
)

for name in COMMANDS:
    importlib.import_module(f"mla_cli.commands.{name}")


def main() -> None:
    """The console script `mla`. What the terminal's encoding lacks is shown as `\\xb1`, instead of an exception."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()

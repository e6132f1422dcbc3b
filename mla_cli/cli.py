"""All commands, in the order of `mla --help`.

Each is one file below `commands`: options in, one engine call, the result to `render`. Heavy imports stay inside them.
"""

import importlib

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
    """The console script `mla`."""
    app()

"""The command line in this process: exit code, stdout and stderr, each by itself."""

from dataclasses import dataclass

from typer.testing import CliRunner

from mla_cli.cli import app


@dataclass(frozen=True)
class Output:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str


def mla(*words: object) -> Output:
    """Run `mla WORDS`. A traceback is a bug, so any exception but the exit itself is raised here."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Output(result.exit_code, result.stdout, result.stderr)

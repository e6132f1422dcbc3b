"""Many commands at the same moment: one process imports everything once and forks one for each command.

Run as a script: `python forks.py FOLDER` with a JSON list of commands (lists of words) on stdin. Each child waits until
all are there, then does its command in FOLDER; its output goes to FOLDER/N.out and FOLDER/N.err. `repeat` as the first
word: do the command again and again until all others have ended. Every set that is built and every epoch that is
trained is noted in FOLDER/work.log, with the process that did it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from command_line import Output


def at_once(folder: Path, commands: Sequence[Sequence[str]]) -> list[Output]:
    """Do all commands at once in a folder; what each of them left behind."""
    search = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, __file__, str(folder)]
    done = subprocess.run(
        words, input=json.dumps(commands), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout)
    texts = [[(folder / f"{i}.{end}").read_text("utf-8") for end in ("out", "err")] for i in range(len(commands))]
    return [Output(code, out, err) for code, (out, err) in zip(codes, texts, strict=True)]


def work(folder: Path) -> list[tuple[str, int]]:
    """(what was done, by which process) of all commands at once, in order."""
    lines = (folder / "work.log").read_text("utf-8").splitlines() if (folder / "work.log").is_file() else []
    return [(what, int(pid)) for what, pid in (line.rsplit(" ", 1) for line in lines)]


def note(what: str) -> None:
    """One line, whole, even where several processes write."""
    with open("work.log", "ab", buffering=0) as log:
        log.write(f"{what} {os.getpid()}\n".encode())


def watch() -> None:
    """Have builds and epochs noted."""
    from mla_cli.engine import prepare
    from mla_cli.engine.session import Session

    build, close = prepare.build, Session.close_epoch

    def noted_build(plan: Any, *args: Any) -> Iterator[Any]:
        note(f"build {plan.path}")
        return (yield from build(plan, *args))

    def noted_close(self: Session) -> None:
        close(self)
        note(f"epoch {self.progress.epoch}")

    prepare.build = noted_build  # type: ignore[assignment]
    Session.close_epoch = noted_close  # type: ignore[method-assign]


def life(number: int, words: list[str], start: int, others: int) -> None:
    """A child: wait for all, do the command, leave with its exit code."""
    from mla_cli.cli import app

    for handle, end in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{number}.{end}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), handle)
    os.set_blocking(others, False)
    os.read(start, 1)  # ends for all of them when the parent closes its end
    repeat = words[0] == "repeat"
    words = words[1:] if repeat else words
    sys.argv = ["mla", *words]
    worst, again = 0, True
    while again:
        code: Any = 99
        try:
            app(words, standalone_mode=True)
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            import traceback

            traceback.print_exc()
        worst = max(worst, int(code))
        try:
            again = repeat and worst < 99 and os.read(others, 1) != b""  # closed: they have ended
        except BlockingIOError:
            again = True
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(worst)


def main(folder: str) -> None:
    commands = json.load(sys.stdin)
    os.chdir(folder)
    import mla_cli.engine.ablate
    import mla_cli.engine.check
    import mla_cli.engine.check_runs
    import mla_cli.engine.check_stores
    import mla_cli.engine.train
    import mla_cli.report.page
    import mla_cli.tables  # noqa: F401

    watch()
    start, go = os.pipe()
    others, ended = os.pipe()
    children = []
    for number, words in enumerate(commands):
        pid = os.fork()
        if not pid:
            os.close(go)
            if words[0] == "repeat":
                os.close(ended)
            try:
                life(number, words, start, others)
            finally:
                os._exit(98)
        children.append(pid)
    os.close(go)
    os.close(ended)  # now only the commands that are not repeated hold it: it closes when the last of them has ended
    codes = {pid: os.waitstatus_to_exitcode(status) for pid, status in (os.waitpid(pid, 0) for pid in children)}
    sys.stdout.write(json.dumps([codes[pid] for pid in children]))


if __name__ == "__main__":
    main(sys.argv[1])

"""Lives of `mla` as processes of their own, each from its command to its end, with the fault that a test wishes for.

`python lives.py` is a server: it imports everything once and forks a process for each command, which saves three
seconds each. `Lives` is its client. A fault is one of

    after: seconds      SIGKILL from outside after so long
    at: number          SIGKILL, or the signals of the list `signals`, just before the n-th operation
    in: phase           SIGKILL when this phase is entered for the first time
    full: number        the disk is full from the n-th write on, as long as this life lasts
    record: folder      operations go to `log.jsonl` there, what was synced beside it, for `power_loss.py`

An operation opens a file below the working folder for writing, makes, renames or removes something there, syncs it, or
enters one of the `PHASES`.
"""

import builtins
import errno
import importlib
import inspect
import io
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

# What a life is doing: function -> phase, until it ends.
PHASES = {
    "mla_cli.engine.prepare:scan_raw": "scanning",
    "mla_cli.engine.prepare:build_shards": "shards",
    "mla_cli.engine.prepare:finish_store": "store into place",
    "mla_cli.engine.train:train_claimed": "training begins",
    "mla_cli.core.method:BaseMethod.loss": "training step",
    "mla_cli.engine.run:Run.save_checkpoint": "checkpoint",
    "mla_cli.engine.train:validate": "validation",
    "mla_cli.engine.run:Run.append": "history",
    "mla_cli.engine.train:finish": "finish",
    "mla_cli.tables:write_markdown": "after the finish",
    "mla_cli.engine.evaluate:evaluate": "eval",
}
IMPORTS = """
    matplotlib.backends.backend_agg matplotlib.backends.backend_svg matplotlib.pyplot pyarrow.dataset rich._emoji_codes
    safetensors.torch scipy.special torch._dynamo
    mla_cli.cli mla_cli.datasets.mfeat mla_cli.encoders.mlp mla_cli.engine.figures mla_cli.engine.loggers
    mla_cli.engine.rescore mla_cli.engine.train mla_cli.methods.mla mla_cli.render mla_cli.report.page mla_cli.tables
"""  # what commands import when they need it
WORDS = 1024  # bytes of the shared note


RECIPE = """\
dataset: {name: mfeat, modalities: [mor, fou], limit: 96}
encoders:
  mor: {name: mlp, hidden: 12, dropout: 0.3}
  fou: {name: mlp, hidden: 12, dropout: 0.3}
shared_width: 8
method: {hgm_mean: running}
train:
  {epochs: 2, batch_size: 32, optimizer: adamw, lr: 0.01, schedule: cosine, warmup: 0.5, checkpoint_every: 1,
   threads: 1}
"""
# Where a kill must have been tried in each step of the story.
AIMS = {
    "prepare": ["shards", "store into place"],
    "train": ["training step", "checkpoint", "finish"],
    "eval": ["eval"],
}
# A whole experiment: three processes, each of which may be killed and is then started again with the same words.
STORY = {
    "prepare": "prepare mfeat --recipe tiny.yaml --workers 1 -q",
    "train": "train --recipe tiny.yaml --device cpu --resume -q",
    "eval": "eval --missing-rate 0.3 --mask-seeds 0,1 --format csv",
}


def begin(folder: Path) -> Path:
    """An empty folder with the story's recipe."""
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text(RECIPE, "utf-8")
    return folder


def outcome(folder: Path) -> dict[str, bytes]:
    """All files of a story, but for those with times and process ids, and what killed processes left: locks, parts."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [
        path for path in files if path.name not in ("run.json", "timing.jsonl") and path.suffix not in (".tmp", ".lock")
    ]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# ---------------------------------------------------------------- the client


@dataclass(frozen=True)
class Life:
    """How a process ended: exit code (negative: the signal), what it said, and what it was doing last."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    processor: float  # seconds of processor time
    phase: str
    operations: int
    writes: int  # counted with the fault `full` alone
    full: str  # the file that did not fit
    doing: str


class Lives:
    """A server's lives, one at a time; a context manager."""

    def __enter__(self) -> "Lives":
        package = str(Path(__file__).parent.parent)
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def live(self, words: list[str], folder: Path, **fault: Any) -> Life:
        """Run `mla WORDS` in a folder."""
        assert self.server.stdin and self.server.stdout
        self.server.stdin.write(json.dumps([words, str(folder), fault]) + "\n")
        self.server.stdin.flush()
        return Life(**json.loads(self.server.stdout.readline()))

    def story(self, folder: Path) -> dict[str, bytes]:
        """The story from where it stands to its end: its files, and what `eval` printed."""
        said = ""
        for words in STORY.values():
            life = self.live(words.split(), folder)
            assert life.code == 0, (words, life.stderr)
            said = life.stdout
        return outcome(folder) | {"stdout": said.encode()}

    def __exit__(self, *_: object) -> None:
        self.server.communicate()


@dataclass
class Kills:
    """Stories that are killed again and again: each phase of `AIMS` once, then half of the times at a random operation,
    half after a random time.

    A story ends when a life of each of its steps was not killed; its bytes must then be those of an undisturbed one.
    """

    lives: Lives
    folder: Path
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.places: list[tuple[str, str]] = []  # step and phase of every kill
        self.stories = 0
        place, self.length = begin(self.folder / "whole"), dict[str, Life]()
        for step, words in STORY.items():
            self.length[step] = self.lives.live(words.split(), place)
            assert self.length[step].code == 0, self.length[step].stderr
        self.whole = outcome(place) | {"stdout": self.length["eval"].stdout.encode()}

    def fault(self, step: str, even: bool) -> dict[str, Any]:
        """A kill, or in one case of four none."""
        length = self.length[step]
        if self.rng.random() < 0.25:
            return {}
        for phase in AIMS[step]:
            if even and (step, phase) not in self.places:
                return {"in": phase}
        if even and step != "eval":  # that one writes nothing
            return {"at": int(self.rng.integers(1, length.operations + 1))}
        return {"after": float(self.rng.uniform(0, length.seconds))}

    def one_story(self, most: int) -> None:
        """Until `most` kills are reached in all, then undisturbed to its end."""
        folder = begin(self.folder / f"story{self.stories}")
        for step, words in STORY.items():
            while True:
                fault = self.fault(step, len(self.places) % 2 == 0) if len(self.places) < most else {}
                life = self.lives.live(words.split(), folder, **fault)
                if life.code == 0:
                    break
                assert life.code == -signal.SIGKILL, (step, fault, life.stderr)
                self.places.append((step, life.phase))
        found = outcome(folder) | {"stdout": life.stdout.encode()}
        wrong = sorted(name for name in found.keys() | self.whole.keys() if found.get(name) != self.whole.get(name))
        assert not wrong, (wrong, self.places)
        self.stories += 1
        shutil.rmtree(folder)


# ---------------------------------------------------------------- the server


class Note:
    """What a life is doing, readable by the server after its end: operations, phase, last operation."""

    def __init__(self, fatal: int | None, signals: list[int], phase: str | None):
        self.memory = mmap.mmap(-1, WORDS)
        self.phase, self.operations, self.fatal = "start", 0, fatal
        self.signals, self.fatal_phase = signals, phase
        self.writes, self.full = 0, ""

    def count(self, doing: str) -> None:
        """One more operation is about to be done, which may be the last."""
        self.operations += 1
        self.write(doing)
        if self.operations == self.fatal or self.phase == self.fatal_phase:
            signal.pthread_sigmask(signal.SIG_BLOCK, self.signals)
            for number in self.signals:  # to this thread: another one would not hold them back
                signal.pthread_kill(threading.get_ident(), number)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self.signals)  # all at once, or the first would unwind from here

    def write(self, doing: str) -> None:
        text = json.dumps([self.operations, self.phase, self.writes, self.full, doing[:150]]).encode()
        self.memory[: len(text) + 1] = text + b"\n"

    def read(self) -> list[Any]:
        return list(json.loads(bytes(self.memory[:]).partition(b"\n")[0]))


def serve() -> None:
    """Import what lives need, then fork one after the other."""
    for module in IMPORTS.split():
        importlib.import_module(module)
    names = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    # a fork of several threads may hang; that of pyarrow's allocator knows how to fork
    assert len(names - {"jemalloc_bg_thd"}) == 1, names
    for line in sys.stdin:
        words, folder, fault = json.loads(line)
        note = Note(fault.get("at"), fault.get("signals", [signal.SIGKILL]), fault.get("in"))
        note.write("")
        place = Path(folder)
        place.mkdir(exist_ok=True)
        out, err = place.with_name(place.name + ".out"), place.with_name(place.name + ".err")
        begun = time.monotonic()
        child = os.fork()
        if child == 0:
            be_born(words, place, fault, note, out, err)
        code, processor = wait_for(child, fault.get("after"))
        operations, phase, writes, full, doing = note.read()
        told = [path.read_text("utf-8", "replace") for path in (out, err)]
        life = Life(code, *told, time.monotonic() - begun, processor, phase, operations, writes, full, doing)
        sys.stdout.write(json.dumps(life.__dict__) + "\n")
        sys.stdout.flush()


def wait_for(child: int, seconds: float | None) -> tuple[int, float]:
    """Exit code and processor time; SIGKILL after so many seconds."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status, usage = os.wait4(child, 0 if deadline is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            deadline = None
        time.sleep(0.0005)


def be_born(words: list[str], place: Path, fault: dict[str, Any], note: Note, out: Path, err: Path) -> None:
    """The forked process: never returns."""
    code = 1
    try:
        for number, path in ((0, os.devnull), (1, out), (2, err)):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(path, flags), number)
        os.chdir(place)
        sys.argv = ["mla", *words]
        for target, phase in PHASES.items():
            announce(target, phase, note)
        watch(place, fault, note)
        from mla_cli.cli import main

        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        note.write("")
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def announce(target: str, phase: str, note: Note) -> None:
    """Note the phase while a function runs."""
    module, _, name = target.partition(":")
    owner: Any = sys.modules[module]
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    real = getattr(owner, name)

    @contextmanager
    def during() -> Any:
        before, note.phase = note.phase, phase
        note.count(phase)
        try:
            yield
        finally:
            note.phase = before
            note.write("")

    @wraps(real)
    def steps(*args: Any, **options: Any) -> Any:
        with during():
            return (yield from real(*args, **options))

    @wraps(real)
    def call(*args: Any, **options: Any) -> Any:
        with during():
            return real(*args, **options)

    setattr(owner, name, steps if inspect.isgeneratorfunction(real) else call)


# ---------------------------------------------------------------- faults


def watch(place: Path, fault: dict[str, Any], note: Note) -> None:
    """Count every operation on files below the folder, and do the fault."""
    log = Log(Path(fault["record"])) if "record" in fault else None
    root, busy = str(place.resolve()), [False]

    def operation(kind: str, *paths: str, handle: int | None = None) -> None:
        if busy[0] or not all(path.startswith(root) for path in paths):
            return
        busy[0] = True
        names = [os.path.relpath(path, root) for path in paths]
        note.count(f"{kind} {' '.join(names)}")
        if log is not None:
            log.add(kind, names, handle)
        busy[0] = False

    def full(path: Any, folder: int | None = None) -> str:
        start = os.getcwd() if folder in (None, -1) else os.readlink(f"/proc/self/fd/{folder}")
        return os.path.normpath(os.path.join(start, os.fsdecode(path)))

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and not isinstance(args[0], int):
            path, mode, flags = args
            writes = flags & (os.O_WRONLY | os.O_RDWR) if isinstance(flags, int) else set(mode or "") & set("wax+")
            if writes:
                operation("append" if flags & os.O_APPEND else "open", full(path))
        elif event == "os.rename":
            operation("rename", full(args[0], args[2]), full(args[1], args[3]))
        elif event in ("os.remove", "os.rmdir"):
            operation(event.partition(".")[2], full(args[0], args[1]))
        elif event == "os.mkdir":
            operation("mkdir", full(args[0], args[2]))

    real_sync = os.fsync

    def fsync(handle: int) -> None:
        operation("sync", os.readlink(f"/proc/self/fd/{handle}"), handle=handle)
        if log is None:  # no power fails here
            return
        real_sync(handle)

    os.fsync = fsync
    sys.addaudithook(hook)
    if "full" in fault:
        fill_disk(root, fault["full"], note)


class Log:
    """Operations in their order; what a file held when it was synced lies beside the log, under its number."""

    def __init__(self, folder: Path):
        self.folder, self.number = folder, 0
        folder.mkdir(parents=True, exist_ok=True)
        self.file = os.open(folder / "log.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def add(self, kind: str, names: list[str], handle: int | None) -> None:
        line: dict[str, Any] = {"kind": kind, "names": names}
        if handle is not None and not os.path.isdir(f"/proc/self/fd/{handle}"):
            with open(f"/proc/self/fd/{handle}", "rb") as content:
                held = content.read()
            line["content"] = f"{os.getpid()}-{self.number}"
            (self.folder / line["content"]).write_bytes(held)
            self.number += 1
        os.write(self.file, json.dumps(line).encode() + b"\n")


def fill_disk(root: str, number: int, note: Note) -> None:
    """From the n-th write on below the folder there is no space left; of that one the first half still fits."""

    class Filling(io.FileIO):
        def write(self, content: Any) -> int | None:
            note.writes += 1
            if number and note.writes >= number:
                if note.writes == number:
                    note.full = os.path.relpath(os.fsdecode(self.name), root)
                    data = memoryview(content).cast("B")
                    super().write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(content)

    real = builtins.open

    def limited(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        inside = not isinstance(file, int) and os.path.abspath(os.fsdecode(file)).startswith(root)
        if not inside or not set(mode) & set("wax"):
            return real(file, mode, *args, **options)
        raw = io.BufferedWriter(Filling(file, mode.replace("b", "").replace("t", "")))
        return raw if "b" in mode else io.TextIOWrapper(raw, encoding="utf-8")

    builtins.open = io.open = limited


if __name__ == "__main__":
    serve()

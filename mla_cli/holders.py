"""Who holds a lock: a process of some machine, and whether it still runs. `locks.py` writes it beside what is held."""

import json
import os
import platform
import shlex
import sys
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from mla_cli.errors import shortened


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. boot: identifies the running kernel; started: when the process began, in clock ticks since
    then; None where the system does not tell. since: local time."""

    pid: int
    host: str
    boot: str | None
    started: int | None
    since: str
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}: {self.command}"

    @property
    def is_elsewhere(self) -> bool:
        """Whether it runs, or ran, on another machine, where its process cannot be looked at."""
        return self.host != platform.node() and (self.boot is None or self.boot != boot_id())

    @property
    def has_ended(self) -> bool:
        """Whether it is known to have ended: its process is gone, its number is another's, or the machine was started
        again since."""
        if self.is_elsewhere:
            return False
        if self.boot != boot_id():
            return True
        if self.started is not None:
            return start_ticks(self.pid) != self.started
        return not process_exists(self.pid)


def this_process() -> Holder:
    """The note of this process."""
    now = datetime.now().astimezone().isoformat(" ", "seconds")
    command = shortened(shlex.join(["mla", *sys.argv[1:]]), most=120)
    return Holder(os.getpid(), platform.node(), boot_id(), start_ticks(os.getpid()), now, command)


@lru_cache(maxsize=1)
def boot_id() -> str | None:
    """What tells this start of this machine from all others; None where there is no /proc."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except (OSError, ValueError):
        return None


def start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since the machine did; None where it is not there, or there is no /proc."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def process_exists(pid: int) -> bool:
    """Whether there is a process of this number; unknown counts as yes."""
    if os.name == "nt":  # there, signal 0 is Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def note_of(folder: Path) -> Path:
    """The file that says who holds a folder; beside it, so that the folder can be emptied, moved and compared."""
    return folder.with_name(f".{folder.name.lstrip('.')}.lock")


def read_holder(note: Path) -> Holder | None:
    """Who a note names; None where there is none that can be read."""
    try:
        content = json.loads(note.read_text("utf-8"))
        holder = Holder(**content)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    whole = (
        isinstance(holder.pid, int)
        and holder.pid > 0
        and all(isinstance(text, str) for text in (holder.host, holder.since, holder.command))
    )
    return holder if whole else None

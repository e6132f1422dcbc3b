"""One process at a time works in a folder, and whoever comes second is told who that is.

The kernel's lock (`flock`) on the folder is the truth: it ends with its process, however that ends. Beside the folder
lies `.FOLDER.lock`, a note of who holds it, removed at the end. A note whose process was killed is recognised and taken
over. Where the note is of another machine nobody here can tell whether its process still runs, as `flock` may not reach
across a network file system: such a lock is never taken over, until the user removes the note. On file systems and
systems without `flock` the note itself is the lock.
"""

import contextlib
import json
import os
import shlex
import time
from dataclasses import asdict
from pathlib import Path

from mla_cli.files import make_folder, unwritable
from mla_cli.holders import Holder, note_of, read_holder, this_process

try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None  # type: ignore[assignment]

LOOKS = 5  # at a lock without a note of who holds it: somebody asks whether it is held, or has just taken it
BETWEEN_LOOKS = 0.02  # seconds


class FolderLock:
    """A folder for this process alone. A context manager to be entered once `taken()` has said True.

    holder: who has it, where `taken()` said False; None where that is not known. ended: whose lock was taken over, as
    that process ended without releasing it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.handle: int | None = None
        self.mine: Holder | None = None
        self.holder: Holder | None = None
        self.ended: Holder | None = None

    @property
    def note(self) -> Path:
        return note_of(self.folder)

    def taken(self) -> bool:
        """Make the folder where it is not there, and take the lock; False while another process holds it."""
        self.holder = self.ended = None
        make_folder(self.folder)
        for _ in range(LOOKS):
            locked = self._flock(exclusive=True)
            if locked is None:
                return self._take_by_note()
            left = read_holder(self.note)
            if locked:
                return self._take_over(left)
            self.holder = left if left is None or not left.has_ended else None
            if self.holder is not None:
                break
            time.sleep(BETWEEN_LOOKS)
        return False

    def told(self) -> str:
        """Who has it, in words, to be put behind a sentence that says so."""
        return "" if self.holder is None else f" ({self.holder})"

    def how_to_go_on(self, otherwise: str) -> str:
        """What to do about a lock of another machine; `otherwise` for one of this machine."""
        if self.holder is None or not self.holder.is_elsewhere:
            return otherwise
        host, pid = self.holder.host, self.holder.pid
        return (
            "that is another machine, where it cannot be seen from here whether it has ended: look there with "
            f"`ssh {host} ps -p {pid}`; if it has, remove the lock with `rm {shlex.quote(str(self.note))}` "
            "and run the same command again"
        )

    def waiting(self) -> str:
        """What to tell before waiting for it."""
        return f"waiting for it to end{'; ' + how if (how := self.how_to_go_on('')) else ''}"

    def taken_over(self) -> str:
        """What to tell where the lock was left behind; nothing where it was free."""
        return "" if self.ended is None else f"{self.folder} was left by a process that is gone ({self.ended})"

    @classmethod
    def is_held(cls, folder: Path) -> bool:
        """Whether somebody works in a folder right now, or may do so on another machine; nothing is made."""
        return cls.held(folder) is not None

    @classmethod
    def held(cls, folder: Path) -> "FolderLock | None":
        """The lock of whoever works in a folder right now, with its `holder`; None for nobody. Nothing is made."""
        if not folder.is_dir():
            return None
        lock = cls(folder)
        with lock:
            locked, left = lock._flock(exclusive=False), read_holder(lock.note)
        lock.holder = None if left is None or left.has_ended else left
        if locked is False:
            return lock
        if locked:  # nobody of this machine
            return lock if left is not None and left.is_elsewhere else None
        return lock if lock.note.exists() and (left is None or not left.has_ended) else None

    # ------------------------------------------------------------ the kernel's lock

    def by_kernel(self) -> bool:
        """Whether the folder's file system has such locks; asked of a folder that nobody else uses."""
        locked = self._flock(exclusive=True)
        self._close()
        return locked is not None

    def _flock(self, exclusive: bool) -> bool | None:
        """Take the kernel's lock; False where another process has it, None where there are no such locks.

        not exclusive: to ask whether it is held, which others may do at the same time.
        """
        if fcntl is None:
            return None
        try:
            self.handle = os.open(self.folder, os.O_RDONLY)
            fcntl.flock(self.handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(self.handle), os.stat(self.folder))
        except (BlockingIOError, FileNotFoundError):  # or moved away meanwhile: look again
            ours = False
        except OSError:
            self._close()
            return None
        if not ours:
            self._close()
        return ours

    def _take_over(self, left: Holder | None) -> bool:
        """The kernel's lock is ours: whoever is noted has ended, unless it is on another machine."""
        self.mine = this_process()
        for _ in range(LOOKS):
            if left is not None and left.is_elsewhere:
                self.holder, self.mine = left, None
                self._close()
                return False
            try:
                self._write_note()
                break
            except FileExistsError:  # of a process that has ended; or of one elsewhere that was faster
                left = read_holder(self.note) or left
                if left is None or not left.is_elsewhere:
                    with contextlib.suppress(OSError):
                        self.note.unlink()
            except OSError:  # the kernel's lock does not need it
                break
        self.ended = left
        return True

    # ------------------------------------------------------------ without it

    def _take_by_note(self) -> bool:
        """The note is the lock: who makes the file has it. Raises MlaError where it cannot be written."""
        self.mine = this_process()
        for _ in range(LOOKS):
            try:
                self._write_note()
                return True
            except FileExistsError:
                left = read_holder(self.note)
                if left is None:  # being written or removed
                    time.sleep(BETWEEN_LOOKS)
                elif not left.has_ended:
                    self.holder = left
                    break
                elif self._removed(left):
                    self.ended = left
            except OSError as error:
                raise unwritable(self.note, error) from error
        self.mine = None
        return False

    def _removed(self, left: Holder) -> bool:
        """Remove the note of a process that has ended; what another one has put in its place meanwhile goes back."""
        aside = self.note.with_name(f"{self.note.name}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            os.rename(self.note, aside)
            if read_holder(aside) == left:
                aside.unlink()
                return True
            os.link(aside, self.note)
            aside.unlink()
        return False

    def _write_note(self) -> None:
        """Write who we are. Raises FileExistsError where there is a note already."""
        if self.mine is None:
            return
        handle = os.open(self.note, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.write(handle, (json.dumps(asdict(self.mine), sort_keys=True) + "\n").encode())
        except OSError:
            self.note.unlink()
            raise
        finally:
            os.close(handle)

    # ------------------------------------------------------------ the end

    def release(self) -> None:
        """Give it back; the note goes first, so that nobody reads it of a lock that is free."""
        if self.mine is not None and read_holder(self.note) == self.mine:
            with contextlib.suppress(OSError):
                self.note.unlink()
        self.mine = None
        self._close()

    def _close(self) -> None:
        if self.handle is not None:
            os.close(self.handle)
        self.handle = None

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

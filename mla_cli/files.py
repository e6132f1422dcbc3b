"""Files that appear whole or not at all: write to a temporary name in the folder, fsync, rename, fsync the folder."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mla_cli.errors import MlaError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.ELOOP)  # no permission, or links in a circle
LEFT_BEHIND = 3600  # seconds


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file for writing that replaces `path` only when the block ends without an error.

    Raises MlaError where the folder cannot be written (no permission, read-only, no space left).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _make_folder(path.parent)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
        sweep(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        # read-only or full: there is nothing to tidy up, or no way to
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sweep(path: Path) -> None:
    """Remove what processes that were killed left of this file: temporary ones that nobody has written to for long."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):  # somebody else was faster
            if time.time() - left.stat().st_mtime > LEFT_BEHIND:
                left.unlink()


def unwritable(path: Path | str, error: OSError) -> MlaError:
    """What to tell the user when a file cannot be written."""
    reason = error.strerror or str(error)
    if error.errno in DISK_FULL:
        hint = "free some space and run the same command again; what was finished is kept"
    else:
        hint = "choose another place with --data-dir or --run-dir, or mend its permissions"
    return MlaError(f"cannot write `{path}`: {reason}", hint)


def no_access(error: OSError) -> MlaError:
    """What to tell the user about a file or folder that the system does not let us look at (`NO_ACCESS`)."""
    hint = "mend its permissions, or choose another place"
    return MlaError(f"no access to `{error.filename}`: {error.strerror}", hint)


def real_path(path: Path) -> Path:
    """The absolute path behind links; links in a circle stay, where `Path.resolve` fails before Python 3.13."""
    return Path(os.path.realpath(path))


def make_folder(path: Path) -> Path:
    """Create a folder and its parents, durably. Raises MlaError where that is not allowed."""
    try:
        _make_folder(path)
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def _make_folder(path: Path) -> None:
    if path.is_dir():
        return
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(new):  # a file is as durable as the names of all folders above it
        sync_folder(folder.parent)


def empty_folder(folder: Path) -> None:
    """Remove everything in a folder, but not the folder, before anything new is written there."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    sync_folder(folder)


def sync_tree(folder: Path) -> None:
    """Make files and folders durable that were not written as whole files, before a name promises that they are."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as content:
                os.fsync(content.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make a rename durable. A file system that cannot sync a folder keeps its own promise."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file."""
    with whole_file(path) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    """Write a whole UTF-8 file."""
    write_bytes(path, content.encode("utf-8"))


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, durably; a crash may leave its beginning. Raises MlaError where that is not possible."""
    try:
        is_new = not path.exists()
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


def json_text(content: Any) -> str:
    """Readable JSON with sorted keys; NaN and infinity, which JSON lacks, are refused."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write a whole JSON file."""
    write_text(path, json_text(content))


def write_json_if_other(path: Path, content: Any) -> None:
    """Write a whole JSON file, unless it says just that already."""
    if not path.is_file() or path.read_bytes() != json_text(content).encode():
        write_json(path, content)


def read_json(path: Path, hint: str = "the file was damaged; make it again") -> dict[str, Any]:
    """Read a JSON object. Raises MlaError, with this hint, for a file that holds none."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise MlaError(f"cannot read `{path}`: {error.strerror}", hint) from error
    except (ValueError, RecursionError) as error:
        raise MlaError(f"`{path}` is not valid JSON: {error}", hint) from error
    if not isinstance(content, dict):
        raise MlaError(f"`{path}` holds no JSON object, but a {type(content).__name__}", hint)
    return content


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_at_most(path: Path, limit: int, what: str) -> bytes:
    """A whole file of at most `limit` bytes. Raises MlaError for a larger one, and where it cannot be read."""
    try:
        size = path.stat().st_size
        content = b"" if size > limit else path.read_bytes()
    except OSError as error:
        raise MlaError(f"cannot read `{path}`: {error.strerror}", "mend its permissions, or copy it") from error
    except MemoryError as error:
        raise MlaError(f"`{path}` does not fit into memory", "is it the right file?") from error
    if size > limit:
        raise MlaError(f"`{path}` has more than {limit:,} bytes, which is no {what}", "is it the right file?")
    return content


# ---------------------------------------------------------------- files that carry their own checksum

SEAL = "seal"  # key of a JSON file: SHA-256 of all the others, as `json_text` writes them


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a whole JSON file that carries its own checksum."""
    write_json(path, sealed(content))


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its checksum."""
    bare = {key: value for key, value in content.items() if key != SEAL}
    return bare | {SEAL: hashlib.sha256(json_text(bare).encode()).hexdigest()}


def read_sealed(path: Path, hint: str = "the file was damaged; make it again") -> dict[str, Any]:
    """Read a JSON object and compare it with its checksum, which is left out; one of an earlier version has none.

    Raises MlaError, with this hint, for a file that was damaged or edited.
    """
    content = read_json(path, hint)
    seal = content.pop(SEAL, None)
    if seal is None:
        return content
    try:
        good = sealed(content)[SEAL] == seal
    except ValueError:  # NaN, which we never write
        good = False
    if not good:
        raise MlaError(f"`{path}` was damaged or edited: it is not what its checksum (`{SEAL}`) says", hint)
    return content


def has_seal(path: Path) -> bool:
    """Whether a JSON object carries a checksum; those of earlier versions do not."""
    return SEAL in read_json(path)

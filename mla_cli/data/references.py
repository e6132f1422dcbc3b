"""References to raw data: parsing them, finding their files below the raw root, opening zip members.

A reference is a path relative to the raw root with POSIX separators, optionally followed by
    `::MEMBER`      a member of a `.zip` (or a row of a `.npz`/`.npy`, see `data/features.py`), then by a fragment
    `#t=1.5,4.25`   seconds [start, end) (W3C media fragments); `&xywh=percent:0,0,50,100` a part of the picture;
    `#encoding=latin-1`  how a text file is read.
Nothing here trusts a file: what is not there or not readable arrives as `BadMedia`.
"""

import io
import os
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath

from PIL import Image

MAX_MEMBER_BYTES = 2**28  # a zip member is read into memory; 256 MiB
LFS_START = b"version https://git-lfs"

Box = tuple[float, float, float, float]  # x, y, width, height of a part of the picture, in percent
Source = str | Path | io.BytesIO


class BadMedia(Exception):
    """One reference that cannot be used: `kind` is one of `manifest.PROBLEM_KINDS`, `reason` is for the user."""

    def __init__(self, kind: str, reason: str):
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


# What Pillow, zipfile and NumPy are known to raise on damaged input (UnidentifiedImageError is an OSError).
DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,  # Pillow's word for a broken PNG
    EOFError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,  # an encrypted zip member; NotImplementedError is one too
    MemoryError,
    struct.error,
    tokenize.TokenError,  # NumPy parses the headers of old `.npy` files with Python's own tokenizer
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
    Warning,
)


@contextmanager
def decoding(what: str) -> Iterator[None]:
    """The decode boundary: what a decoder raises on a damaged file leaves as `BadMedia("undecodable", ...)`."""
    try:
        yield
    except DECODER_ERRORS as error:
        detail = (str(error).splitlines() or [""])[0][:200]
        raise BadMedia("undecodable", f"{what} cannot be decoded ({type(error).__name__}: {detail})") from error


@dataclass(frozen=True)
class Ref:
    """A parsed reference; see the module's text."""

    path: str
    member: str | None = None
    start: float | None = None
    end: float | None = None
    box: Box | None = None
    encoding: str | None = None


_FRAGMENT = re.compile(r"(?s)(.*)#((?:t|xywh|encoding)=[^#]*)")
_ARCHIVE = re.compile(r"(?is)(.*?\.(?:zip|npz|npy))::(.*)")
_SECONDS = re.compile(r"(?:npt:)?(\d+(?:\.\d*)?|\.\d+)?(?:,(\d+(?:\.\d*)?|\.\d+))?")
_PERCENT = re.compile(r"percent:" + ",".join([r"(\d+(?:\.\d*)?|\.\d+)"] * 4))


def parse_ref(ref: str) -> Ref:
    """Split a reference into its parts. A `#` that does not start a known fragment belongs to the file's name.

    >>> parse_ref("a #2.mp4#t=1.5,4&xywh=percent:0,0,50,100")
    Ref(path='a #2.mp4', member=None, start=1.5, end=4.0, box=(0.0, 0.0, 50.0, 100.0), encoding=None)
    """
    start = end = box = encoding = None
    if matched := _FRAGMENT.fullmatch(ref):
        ref, fragment = matched.groups()
        for part in fragment.split("&"):
            key, _, value = part.partition("=")
            if key == "t" and value and (seconds := _SECONDS.fullmatch(value)):
                start, end = (None if s is None else float(s) for s in seconds.groups())
                if end is not None and end <= (start or 0.0):
                    raise BadMedia("too_short", f"the cut `{part}` is empty")
            elif key == "xywh" and (percent := _PERCENT.fullmatch(value)):
                x, y, width, height = (float(p) for p in percent.groups())
                box = (x, y, width, height)
                if not (width > 0 and height > 0 and x + width <= 100 and y + height <= 100):
                    raise BadMedia("undecodable", f"the part `{part}` is not inside the picture")
            elif key == "encoding" and value:
                encoding = value
            else:
                raise BadMedia(
                    "undecodable", f"`{part}` is not a fragment such as `t=1.5,4` or `xywh=percent:0,0,50,100`"
                )
    if matched := _ARCHIVE.fullmatch(ref):
        return Ref(matched[1], matched[2], start, end, box, encoding)
    return Ref(ref, None, start, end, box, encoding)


@lru_cache(maxsize=16)
def _real(root: str) -> str:
    return os.path.realpath(root)


def resolve(root: Path, ref: str | Ref, allow_outside: bool = False) -> Path:
    """The file of a reference. Raises `BadMedia`: outside_root (absolute, `..`, or a link that leads out), missing."""
    name = (ref if isinstance(ref, Ref) else parse_ref(ref)).path
    pure = PurePosixPath(name)
    if not allow_outside and (pure.is_absolute() or PureWindowsPath(name).is_absolute() or ".." in pure.parts):
        raise BadMedia("outside_root", f"`{name}` points outside the raw root")
    try:
        path = Path(root, name)
        real = os.path.realpath(path)
        base = _real(os.path.abspath(root))  # the working directory may change between two calls
        inside = real == base or real.startswith(base.rstrip(os.sep) + os.sep)
        if not allow_outside and not inside:
            raise BadMedia(
                "outside_root", f"`{name}` is a link that leads outside the raw root; if it is yours: --allow-outside"
            )
        if path.is_file():
            return path
        raise BadMedia("missing", f"`{name}` is not a file" if path.exists() else f"`{name}` does not exist")
    except (OSError, ValueError) as error:  # a name too long, a NUL character
        raise BadMedia("missing", f"`{name[:200]}` cannot be looked up ({error})") from error


def read_start(path: Path, size: int = 64) -> bytes:
    """The first bytes of a file that has content. Raises `BadMedia`: empty, lfs_pointer, undecodable (no access)."""
    with decoding(f"`{path.name}`"), open(path, "rb") as file:
        head = file.read(size)
    return _refuse_blank(head, path.name)


def _refuse_blank(data: bytes, name: str) -> bytes:
    if not data:
        raise BadMedia("empty", f"`{name}` has no bytes")
    if data.startswith(LFS_START):
        raise BadMedia("lfs_pointer", f"`{name}` is a Git LFS pointer, not the file; run `git lfs pull`")
    return data


@lru_cache(maxsize=8)
def _open_zip(path: str, stamp: tuple[int, int], process: int) -> zipfile.ZipFile:
    # Keyed by process: a handle inherited through fork would share its file position with the parent.
    with decoding(f"`{os.path.basename(path)}`"):
        return zipfile.ZipFile(path)


def file_stamp(path: Path) -> tuple[int, int]:
    """(modification time in ns, bytes): a cached reading of a file is good while this is equal."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def open_source(root: Path, ref: str | Ref, allow_outside: bool = False) -> tuple[Source, Ref]:
    """What a decoder reads: a path, or the bytes of a zip member. Raises `BadMedia` for whatever is not there."""
    parsed = ref if isinstance(ref, Ref) else parse_ref(ref)
    path = resolve(root, parsed, allow_outside)
    read_start(path)
    if parsed.member is None:
        return path, parsed
    archive = _open_zip(str(path), file_stamp(path), os.getpid())
    try:
        info = archive.getinfo(parsed.member)
    except KeyError:
        raise BadMedia("missing", f"`{parsed.path}` has no member `{parsed.member}`") from None
    if info.file_size > MAX_MEMBER_BYTES:
        raise BadMedia("undecodable", f"member `{parsed.member}` claims {info.file_size:,} bytes")
    with decoding(f"member `{parsed.member}`"):
        data = archive.read(info)
    return io.BytesIO(_refuse_blank(data, parsed.member)), parsed

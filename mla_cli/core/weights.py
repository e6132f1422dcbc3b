"""Pretrained weights of an encoder from a file: read without running anything, matched by name, and told in full.

A file is safetensors (`.safetensors`) or a checkpoint of torch (`.pt`, `.pth`), of which only tensors and plain
containers are read (`weights_only=True`). Nothing is downloaded, but for a hub model that the user named. An encoder
file may define `convert(tensors, network) -> tensors`, which maps the names and shapes of other layouts to its own, and
`pretrained_file(key, **own keys) -> Path`, the file that its own key `pretrained` names.

Importing this module imports no torch: a run's hash needs the file's digest, not its tensors.
"""

import hashlib
import io
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mla_cli import registry
from mla_cli.errors import MlaError, shortened
from mla_cli.files import read_at_most, sha256
from mla_cli.schema import EncoderSection

if TYPE_CHECKING:
    from torch import Tensor, nn

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")  # the last is what Hugging Face calls a checkpoint of torch
LEAST = 0.9  # share of an encoder's parameters, by element count, that a file must fill unless `strict: false`
NO_STATE_DICT = "a state dict maps names to tensors, alone or under `model` or `state_dict`"
MAX_FILE_BYTES = 2**36  # 64 GiB; a file is read whole
MAX_WRAPPERS = 8  # mappings inside each other under `model` or `state_dict`; a pickled one can hold itself
MAX_SHARED_BYTES = 2**28  # of a tensor whose elements share memory: a file of one number can claim any shape
SHOWN = 4  # so many names of a list are told in a line; all of them stand in run.json


@dataclass(frozen=True)
class Loaded:
    """What became of a weights file. Names of tensors, in order; other_shape: also those of another kind of number.

    share: the part of the encoder's parameters that the file filled, by element count.
    """

    modality: str
    path: str
    sha256: str
    share: float
    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    other_shape: list[str]
    complete: bool  # nothing was left as initialised, but for batch normalisation's counters

    def facts(self) -> dict[str, Any]:
        """For `run.json`."""
        names = ("path", "sha256", "share", "matched", "missing", "unexpected", "other_shape")
        return {name: getattr(self, name) for name in names}

    def differences(self) -> str:
        """The first names of every kind that did not match; empty where all did."""
        lists = {"missing": self.missing, "other shape": self.other_shape, "unexpected": self.unexpected}
        return "; ".join(f"{len(names)} {kind}: {first(names)}" for kind, names in lists.items() if names)

    def line(self) -> str:
        """What to tell the user once."""
        found = f"{len(self.matched)} tensors, {self.share:.1%} of its parameters, from `{self.path}`"
        return f"weights of {self.modality}: {found}" + (f" ({more})" if (more := self.differences()) else "")


def first(names: list[str]) -> str:
    """The first names of a list."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def pretrained(section: EncoderSection) -> bool:
    """Whether an encoder's own key `pretrained` asks for weights."""
    own = registry.options("encoders", section.name).get("pretrained")
    return own is not None and section.options().get("pretrained", own[1]) is not False


def has_weights(section: EncoderSection) -> bool:
    """Whether an encoder starts from given weights."""
    return section.weights is not None or pretrained(section)


def weights_key(modality: str, section: EncoderSection) -> str:
    """The recipe key that names an encoder's weights."""
    return f"encoders.{modality}.{'weights' if section.weights is not None else 'pretrained'}"


def weights_file(modality: str, section: EncoderSection) -> Path:
    """The file that `encoders.MODALITY.weights` or `.pretrained` names. Raises MlaError if it cannot be weights."""
    key = weights_key(modality, section)
    if section.weights is None:
        file: Path = registry.load("encoders", section.name).pretrained_file(key, **section.options())
        return file
    if pretrained(section):
        raise MlaError(
            f"`{key}` and `encoders.{modality}.pretrained` both name weights",
            f"keep one: `encoders.{modality}.pretrained: false`, or no `weights`",
        )
    path = Path(section.weights).expanduser()
    if not path.is_file():
        hint = "give a path to a .safetensors, .pt or .pth file; nothing is downloaded"
        raise MlaError(f"`{key}`: no file `{path}`", hint)
    if path.suffix not in SUFFIXES:
        hint = f"a weights file ends in {', '.join(SUFFIXES)}"
        raise MlaError(f"`{key}`: cannot tell what `{path}` holds from its name", hint)
    return path


def check_digest(modality: str, section: EncoderSection, path: Path, digest: str) -> None:
    """Raise MlaError where `encoders.MODALITY.sha256` is given and is not the file's."""
    if section.sha256 not in (None, digest):
        raise MlaError(
            f"`{weights_key(modality, section)}`: the sha256 of `{path}` is `{digest}`, not `{section.sha256}`",
            f"fetch the file again, or mend `encoders.{modality}.sha256` if you trust this one",
        )


def weights_digest(modality: str, section: EncoderSection) -> str:
    """The sha256 of an encoder's weights file: its part of a run's hash."""
    path = weights_file(modality, section)
    try:
        digest = sha256(path)
    except OSError as error:
        raise MlaError(f"cannot read `{path}`: {error.strerror}", "mend its permissions, or copy it") from error
    check_digest(modality, section, path, digest)
    return digest


def load_weights(
    modality: str,
    section: EncoderSection,
    network: "nn.Module",
    convert: "Callable[[dict[str, Tensor], nn.Module], Mapping[str, Tensor]] | None" = None,
) -> Loaded:
    """Fill a network, in place, with the tensors of its weights file that have its names and shapes.

    Raises MlaError, before the network is touched, for a file that is not what it says, that holds values which are not
    finite, or that fills less than 90 % of the parameters while `strict` is true.
    """
    import torch

    path = weights_file(modality, section)
    content = read_bytes(path)
    digest = hashlib.sha256(content).hexdigest()  # of the very bytes that are loaded
    check_digest(modality, section, path, digest)
    tensors = read_tensors(path, content)
    given = dict(tensors if convert is None else convert(tensors, network))
    own = network.state_dict()
    matched = [n for n, value in own.items() if n in given and fits(given[n], value)]
    other_shape = [
        f"{n} {describe(given[n])} for {describe(value)}"
        for n, value in own.items()
        if n in given and not fits(given[n], value)
    ]
    missing = [n for n in own if n not in given]
    for name in matched:
        if not bool(given[name].float().isfinite().all()):  # as what it will be; 8-bit numbers have no isfinite
            raise MlaError(f"`{path}` holds values in `{name}` that are not finite", "fetch or make the file again")
    sizes = {n: parameter.numel() for n, parameter in network.named_parameters()}
    filled = sum(sizes.get(n, 0) for n in matched)
    loaded = Loaded(
        modality=modality,
        path=str(path),
        sha256=digest,
        share=filled / max(sum(sizes.values()), 1),
        matched=matched,
        missing=missing,
        unexpected=[n for n in given if n not in own],
        other_shape=other_shape,
        complete=not other_shape and not any(own[n].is_floating_point() for n in missing),
    )
    if section.strict and filled < LEAST * sum(sizes.values()):
        raise MlaError(
            f"`{weights_key(modality, section)}`: `{path}` fills {loaded.share:.1%} of the parameters of "
            f"`{section.name}`: {loaded.differences()}",
            f"give a checkpoint of this encoder, or load what fits with `encoders.{modality}.strict: false`",
        )
    with torch.no_grad():
        for name in matched:
            own[name].copy_(given[name])
    return loaded


def plain_name(name: object) -> str:
    """A name from a file in one line, cut where it is endless."""
    text = str(name)
    return shortened(text if text.isprintable() else text.encode("unicode_escape").decode("ascii"))


def fits(given: "Tensor", own: "Tensor") -> bool:
    """Whether a tensor can take another's place: equal shapes, and both numbers or both counts."""
    return given.shape == own.shape and given.is_floating_point() == own.is_floating_point()


def describe(tensor: "Tensor") -> str:
    """Shape and kind of a tensor: `(64, 3, 7, 7) float32`."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


# ---------------------------------------------------------------- files


def read_bytes(path: Path) -> bytes:
    """A whole file. Raises MlaError where it cannot be read."""
    return read_at_most(path, MAX_FILE_BYTES, "checkpoint")


def read_checkpoint(path: Path) -> "tuple[dict[str, Tensor], str]":
    """The tensors of a file of any name, as `read_tensors` gives them, and the sha256 of the bytes they came from."""
    path = path.expanduser()
    if not path.is_file():
        hint = "give a path to a checkpoint (.pt, .pth or .safetensors); nothing is downloaded"
        raise MlaError(f"no file `{path}`", hint)
    content = read_bytes(path)
    return read_tensors(path, content), hashlib.sha256(content).hexdigest()


def read_tensors(path: Path, content: bytes) -> "dict[str, Tensor]":
    """The named tensors of a file, on the CPU, without wrappers: `model`, `state_dict`, a `module.` before every name.

    What lies beside a wrapped state dict (an optimiser, an epoch) is left. Raises MlaError for anything else.
    """
    from torch import Tensor, strided

    found = read_safetensors(path, content) if path.suffix == ".safetensors" else read_torch(path, content)
    for _ in range(MAX_WRAPPERS):
        keys = ("model", "state_dict") if isinstance(found, Mapping) else ()
        found = next((found[key] for key in keys if isinstance(found.get(key), Mapping)), found)
    if not isinstance(found, Mapping) or not found:
        raise MlaError(f"`{path}` holds no state dict", NO_STATE_DICT)
    for name, value in found.items():
        plain = isinstance(value, Tensor) and value.layout == strided and not (value.is_meta or value.is_quantized)
        if not plain or value.is_complex():
            what = "is complex" if plain else "is not a dense tensor"
            raise MlaError(f"`{path}` holds no plain state dict: `{plain_name(name)}` {what}", NO_STATE_DICT)
        size = value.numel() * value.element_size()
        if size > max(value.untyped_storage().nbytes(), MAX_SHARED_BYTES):
            raise MlaError(
                f"`{path}`: tensor `{plain_name(name)}` claims {size:,} bytes, more than the file holds",
                "fetch it again",
            )
    prefix = "module."  # torch's DataParallel puts it there
    wrapped = all(str(name).startswith(prefix) for name in found)
    return {str(name).removeprefix(prefix if wrapped else ""): value for name, value in found.items()}


def read_safetensors(path: Path, content: bytes) -> Any:
    """A file of the safetensors format. Raises MlaError for one that is not."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(sorted(load(content).items()))  # the library gives them in another order each time
    except (SafetensorError, ValueError, KeyError) as error:  # KeyError: a type of number that torch lacks
        raise MlaError(f"`{path}` is no safetensors file: {error}", "fetch or make the file again") from error


def read_torch(path: Path, content: bytes) -> Any:
    """A checkpoint of torch, of which nothing is executed. Raises MlaError for any file that needs more than that."""
    import torch

    refuse_compressed(path, content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on old formats
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader lets any kind through for a damaged file
        # torch's own text tells people to switch the safety off, so it is not shown
        named = re.search(r"Unsupported (?:global|class): ?(?:GLOBAL )?([\w.]+)|GLOBAL ([\w.]+)", str(error))
        if named:
            raise MlaError(
                f"`{path}` holds more than tensors (`{named[1] or named[2]}`); Python objects in a file are never run",
                "where you trust it, save its state dict alone, best as .safetensors",
            ) from None
        kind = type(error).__name__
        raise MlaError(f"`{path}` is no checkpoint of torch, or a damaged one ({kind})", "fetch it again") from None


def refuse_compressed(path: Path, content: bytes) -> None:
    """Raise MlaError for a checkpoint whose parts are compressed: torch never does that, and a bomb would have to."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            claimed = sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OSError, struct.error):
        return  # no archive, or a damaged one: torch says what it thinks of it
    if claimed > len(content):
        raise MlaError(
            f"`{path}` claims {claimed:,} bytes inside of {len(content):,}; a checkpoint of torch is never compressed",
            "fetch it again, or save it with `torch.save`",
        )

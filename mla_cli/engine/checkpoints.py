"""The files below `checkpoints/` of a run: written whole, found again by their digests, never pickled.

A checkpoint is a safetensors file and a JSON file that names it with its SHA-256; the JSON is written second, so it
always points at a whole file. What never trains, the networks of frozen encoders, is written once.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mla_cli.errors import MlaError
from mla_cli.files import read_sealed, sha256, whole_file, write_bytes, write_sealed

if TYPE_CHECKING:
    from torch import Tensor

OWN = ("tensors", "tensors_sha256")  # keys of the JSON that are not the caller's


def write_checkpoint(folder: Path, which: str, tensors: "Mapping[str, Tensor]", values: Mapping[str, Any]) -> None:
    """Write WHICH.json and the safetensors file it names; then remove the one it replaces."""
    name = f"{which}-e{values['epoch']:04d}-r{values['round']:06d}.safetensors"
    content = packed(tensors)
    with whole_file(folder / name) as file:
        file.write(content)
    digest = hashlib.sha256(content).hexdigest()
    write_sealed(folder / f"{which}.json", {"tensors": name, "tensors_sha256": digest, **values})
    for old in folder.glob(f"{which}-e*.safetensors"):
        if old.name != name:
            old.unlink()


def packed(tensors: "Mapping[str, Tensor]") -> bytes:
    """Tensors as the bytes of a safetensors file; equal tensors give equal bytes."""
    from safetensors.torch import save

    return save({key: tensor.detach().contiguous() for key, tensor in tensors.items()})


def read_values(folder: Path, which: str, again: str) -> dict[str, Any]:
    """The JSON of a checkpoint. again: the hint where it is damaged, which raises MlaError."""
    path = folder / f"{which}.json"
    if not path.is_file():
        raise MlaError(f"`{folder.parent}` has no checkpoint `{which}`", again)
    values = read_sealed(path, again)
    name = values.get("tensors")
    if not isinstance(name, str) or Path(name).name != name:
        raise MlaError(f"`{path}` names no file of tensors", again)
    return values


def read_checkpoint(folder: Path, which: str, again: str) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """Tensors, on the CPU, and values of a checkpoint. Raises MlaError, with the hint `again`, for a damaged one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    values = read_values(folder, which, again)
    path = folder / values["tensors"]
    try:
        if values.get("tensors_sha256") not in (None, sha256(path)):
            raise MlaError(f"checkpoint `{path}` is damaged: it is not what training wrote", again)
        return load_file(path), {key: value for key, value in values.items() if key not in OWN}
    except (OSError, SafetensorError) as error:
        raise MlaError(f"cannot read checkpoint `{path}`: {error}", again) from error


def write_frozen(path: Path, content: bytes, digest: str) -> None:
    """Write the frozen networks unless they stand there already."""
    if not (path.is_file() and sha256(path) == digest):
        write_bytes(path, content)


def read_frozen(path: Path, digest: str, again: str) -> "dict[str, Tensor]":
    """The frozen networks, on the CPU. Raises MlaError for any but those of the digest."""
    from safetensors.torch import load

    try:
        content = path.read_bytes()
    except OSError as error:
        raise MlaError(f"cannot read `{path}`: {error.strerror}", again) from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise MlaError(f"`{path}` is damaged: it is not what training wrote", again)
    return load(content)

"""`mla import --layout m3ae | cav-mae`: published encoder weights as a file that our encoders start from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save

from mla_cli.core.layout_files import Found, read_layout
from mla_cli.core.layouts import NEEDED, OPTIONAL, Layout
from mla_cli.encoders.cav_mae import WIDTH
from mla_cli.encoders.m3ae import SIZES
from mla_cli.errors import MlaError
from mla_cli.files import sha256, write_bytes

CAV_MAE_BLOCKS = 11  # of the default `depth`


@dataclass(frozen=True)
class Written:
    """An encoder's weights as a file of ours. sections: modality -> its section of a recipe."""

    path: Path
    sha256: str
    tensors: int
    parameters: int
    summary: str
    sections: dict[str, dict[str, Any]]

    def lines(self) -> list[str]:
        """What to tell the user."""
        size = f"{self.tensors} tensors, {self.parameters / 1e6:.1f} million parameters"
        lines = [f"wrote {self.path}: {size}", self.summary, f"sha256 {self.sha256}", "", "encoders:"]
        for modality, section in self.sections.items():
            text = yaml.safe_dump(section, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
            lines.append(f"  {modality}: {text.strip()}")
        return lines


def import_encoder(path: Path, layout: Layout, out: Path | None, force: bool) -> Written:
    """Write what our encoder takes of a checkpoint, names and values unchanged, to `out` (None: NAME.safetensors).

    Raises MlaError, with nothing written, for a file that is not in the layout or of a size no encoder of ours has.
    """
    tensors, _, found = read_layout(path, layout)
    out = out or Path(f"{path.stem}.safetensors")
    if out.suffix != ".safetensors":
        raise MlaError(f"`{out}` does not end in .safetensors", f"write for example `--out {out.stem}.safetensors`")
    if out.exists() and out.samefile(path.expanduser()):
        raise MlaError(f"`{out}` is the checkpoint itself", "name another file with `--out`")
    if out.exists() and not force:
        raise MlaError(f"`{out}` exists", "name another file with `--out`, or pass `--force`")
    keys, names = encoder_keys(path, found), found.names(NEEDED, OPTIONAL)
    # cloned: tensors of a checkpoint may share memory, which the format does not allow
    write_bytes(out, save({name: tensors[name].detach().contiguous().clone() for name in names}))
    digest = sha256(out)
    absent = {part.modality for name, part in layout.parts.items() if part.use == OPTIONAL and not found.parts[name]}
    sections: dict[str, dict[str, Any]] = {
        modality: {"name": encoder, "weights": str(out), "sha256": digest, **keys}
        for modality, encoder in layout.encoders.items()
        if modality not in absent
    }
    parameters = sum(tensors[name].numel() for name in names)
    return Written(out, digest, len(names), parameters, found.summary(), sections)


def encoder_keys(path: Path, found: Found) -> dict[str, str | int]:
    """The keys that give our encoder the size of the file, where it is not the default one. MlaError where none do."""
    width, blocks = found.sides["d"], next(iter(found.depths.values()))
    if found.layout.name == "cav-mae":
        if width != WIDTH:
            raise MlaError(f"`{path}` is {width} wide; `cav_mae` is always {WIDTH}", "take a checkpoint of that width")
        return {} if blocks == CAV_MAE_BLOCKS else {"depth": blocks}
    size = next((name for name, (own, *_) in SIZES.items() if own == width), None)
    if size is None:
        known = ", ".join(f"{name} {own}" for name, (own, *_) in SIZES.items())
        raise MlaError(f"`{path}` is {width} wide, which is no size of `m3ae`", f"its sizes are {known}")
    keys: dict[str, str | int] = {} if size == "base" else {"size": size}
    return keys if blocks == SIZES[size][1] else keys | {"depth": blocks}

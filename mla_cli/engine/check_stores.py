"""`mla check` on prepared sets: manifest, index, class list, every shard, features of frozen encoders."""

from pathlib import Path

from mla_cli.data.store import FORMAT
from mla_cli.engine.check_files import Examined, Reader, files_of, shard_names
from mla_cli.engine.events import Steps
from mla_cli.engine.findings import OK, WARNING, Finding
from mla_cli.engine.status import prepare_command
from mla_cli.errors import MlaError
from mla_cli.files import read_json
from mla_cli.locks import FolderLock

DAMAGED = (KeyError, TypeError, ValueError, AttributeError)  # of a manifest without checksum that lacks something


def check_store(path: Path, reader: Reader) -> Steps[list[Finding]]:
    """Every file of a prepared set."""
    again = prepare_command(path, path.name) + " --force"
    seen = Examined("store", reader, lambda: again)
    manifest = None
    if (path / "manifest.json").is_file():
        manifest = seen.sealed(path / "manifest.json")
    else:
        seen.problem(path / "manifest.json", "is missing")
    if manifest is None:
        return seen.report(path, "a prepared set")
    about = "a prepared set"
    try:
        about = f"{manifest['dataset']}, {manifest['counts']['samples']} samples"
        again = prepare_command(path, str(manifest["dataset"])) + " --force"
        if manifest.get("dataset") == "table":
            again = prepare_command(path, path.name) + " --force"
        if manifest["format"] != FORMAT:
            seen.problem(path, f"has store format {manifest['format']}, this version reads {FORMAT}")
        listed = {"index.parquet": manifest.get("index_sha256")} | manifest.get("files", {})
        for name, digest in listed.items():
            if digest is None:  # an earlier version noted none
                seen.bare += 1
                continue
            yield from seen.compare(path / name, digest)
        if (
            "files" not in manifest
            and (path / "classes.txt").read_text("utf-8").split("\n")[:-1] != manifest["classes"]
        ):
            seen.problem(path / "classes.txt", "is not the class list of `manifest.json`")
        for modality, entry in manifest["modalities"].items():
            for shard, digest in shard_names(path / modality, entry):
                yield from seen.compare(shard, digest)
            known = {shard for shard, _ in shard_names(path / modality, entry)}
            for file in (path / modality).glob("*.npy"):
                if file not in known:
                    seen.add(file, WARNING, "is no shard that the manifest lists", "it can be removed")
    except (*DAMAGED, OSError) as error:
        seen.problem(path / "manifest.json", f"is damaged: {type(error).__name__} {error}")
    if (path / "leakage.json").is_file():
        seen.sealed(path / "leakage.json", f"remove it; `{prepare_command(path, path.name)}` makes it again")
    for folder in sorted(path.glob("frozen/*/")):
        yield from check_frozen(folder, seen)
    seen.left_behind(path)
    return seen.report(path, about)


def check_frozen(folder: Path, seen: Examined) -> Steps[None]:
    """Features of a frozen encoder: what is damaged is computed again by the next run that needs it."""
    mend = f"remove the folder `{folder}`: the next run that needs it computes it again"
    if not (folder / "manifest.json").is_file():
        seen.add(folder, WARNING, "is not complete: a run was interrupted", "the next run that needs it goes on")
        return
    manifest = seen.sealed(folder / "manifest.json", mend)
    if manifest is None:
        return
    try:
        for shard, digest in shard_names(folder, manifest):
            yield from seen.compare(shard, digest, mend)
    except DAMAGED as error:
        seen.problem(folder / "manifest.json", f"is damaged: {type(error).__name__} {error}", mend)


def check_partial(path: Path, reader: Reader) -> Steps[list[Finding]]:
    """A half-built set: its shards against their sidecars. A missing shard is one that is not made yet."""
    name = path.name[1:].removesuffix(".partial").rpartition("-")[0]
    again = prepare_command(path, name)
    if not path.is_dir():  # it was finished meanwhile
        return []
    if (lock := FolderLock.held(path)) is not None:
        return [Finding("store", str(path), OK, f"is being built{lock.told()}")]
    seen = Examined("store", reader, lambda: "")
    for sidecar in (file for file in files_of(path) if file.suffix == ".json" and file.parent != path):
        shard = sidecar.with_suffix(".npy")
        mend = f"remove `{sidecar}`, then go on with `{again}`"
        try:
            digest = str(read_json(sidecar)["sha256"])
        except (MlaError, *DAMAGED) as error:
            seen.problem(sidecar, f"is damaged: {error}", mend)
            continue
        yield from seen.compare(shard, digest, mend)
    text = f"half-built: {seen.whole} shards are made"
    return [Finding("store", str(path), WARNING, text, f"go on with `{again}`, or remove it"), *seen.findings]

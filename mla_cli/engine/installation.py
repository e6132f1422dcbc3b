"""`mla check`: the installation. Python, packages, devices, threads, the folders that are written to, the terminal.

Nothing here needs torch, NumPy or any other heavy package: what is broken is explained. Packages are imported in a
process of their own, as a broken one may end it.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from mla_cli.engine import try_imports
from mla_cli.engine.events import Note, Steps
from mla_cli.engine.findings import OK, PROBLEM, WARNING, Finding
from mla_cli.locks import FolderLock

DISTRIBUTION = "mla-cli"
IMPORTED_AS = {"pyyaml": "yaml", "pillow": "PIL"}  # packages whose module has another name
TORCH = ("torch", "torchvision", "torchaudio")
EXTRAS = {
    "timm": ("hf", "encoders from timm"),
    "transformers": ("hf", "encoders from Hugging Face"),
    "ray": ("ray", "`--executor ray`"),
    "tensorboard": ("track", "`--logger tensorboard`"),
    "wandb": ("track", "`--logger wandb`"),
}
TOGETHER = "torch, torchvision, torchaudio"  # as `try_imports` calls them
IMPORT_TIMEOUT = 300.0  # seconds; a cold network file system takes a minute for torch
LITTLE, NOTHING = 2e9, 1e8  # bytes free: warning, problem
FEW_FILES = 1000  # that can still be made
DRIVERS = ("/dev/nvidiactl", "/dev/dxg")  # NVIDIA's, and the same under WSL


def installation(places: Mapping[str, Path]) -> Steps[list[Finding]]:
    """Look at everything. places: what is written there -> the folder, which need not be there yet."""
    yield Note("looking at the installation")
    needed, extras = requirements()
    found = [python(), *versions_of(needed)]
    modules = [IMPORTED_AS.get(r.name.lower(), r.name) for r in [*needed, *extras] if installed(r.name)]
    failed, machine = imports(modules)
    found += import_findings(needed, failed)
    found += devices(machine)
    found += extra_findings(extras, failed)
    found += [finding for what, folder in places.items() for finding in place(what, folder)]
    return [*found, terminal()]


def one(item: str, state: str, says: str, mend: str = "") -> Finding:
    return Finding("installation", item, state, says, mend)


# ---------------------------------------------------------------- packages


def requirements() -> tuple[list[Requirement], list[Requirement]]:
    """The packages that mla needs, with their floors, and those of its optional extras. Read from the installed mla."""
    try:
        every = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        every = []
    plain = [r for r in every if r.marker is None or r.marker.evaluate({"extra": ""})]
    names = {r.name for r in plain}
    known = {r.name: r for r in every if r.name in EXTRAS and r.name not in names}
    return plain, [known.get(name, Requirement(name)) for name in EXTRAS]


def installed(name: str) -> str | None:
    """A package's version; None where it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def python() -> Finding:
    """The interpreter, against the floor that mla declares."""
    wanted = metadata.metadata(DISTRIBUTION)["Requires-Python"] if installed(DISTRIBUTION) else None
    says = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    if wanted and not Requirement(f"python{wanted}").specifier.contains(platform.python_version(), prereleases=True):
        return one("Python", PROBLEM, f"{says}: mla needs {wanted}", "make a new environment with a newer Python")
    return one("Python", OK, says)


def versions_of(needed: Sequence[Requirement]) -> Iterator[Finding]:
    """Packages that are missing, too old, or do not fit the others; one line for all that are well."""
    if not needed:
        text = "mla is not installed as a package, so the versions that it needs are not known"
        yield one("packages", WARNING, text, "install it with `pip install .` in its folder")
        return
    good = 0
    for requirement in needed:
        name, version = requirement.name, installed(requirement.name)
        if version is None:
            yield one(name, PROBLEM, "not installed", f"pip install '{requirement.name}{requirement.specifier}'")
        elif not requirement.specifier.contains(version, prereleases=True):
            says = f"{version} is too old or too new: mla needs {requirement.specifier}"
            yield one(name, PROBLEM, says, f"pip install '{requirement.name}{requirement.specifier}'")
        elif unmet := list(unmet_of(name)):
            mend = "pip install --upgrade " + " ".join(TORCH if name in TORCH else (name,))
            yield one(name, PROBLEM, f"{version} does not fit: it needs {', '.join(unmet)}", mend)
        else:
            good += 1
    says = f"mla {installed(DISTRIBUTION)}; {good} of {len(needed)} packages are there in a version that it takes"
    yield one("packages", OK if good == len(needed) else PROBLEM, says)


def unmet_of(name: str) -> Iterator[str]:
    """What a package needs and does not find, as its own metadata say."""
    for text in metadata.requires(name) or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name}{requirement.specifier} (here: {version or 'none'})"


def imports(modules: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Import modules in a process of its own: those that fail with the reason, and what torch says of the machine."""
    script = Path(try_imports.__file__)
    # -P: a file `torch.py` in the current folder is not the package
    command = [sys.executable, "-P", str(script), *modules]
    failed: dict[str, str] = {}
    machine: dict[str, Any] = {}
    begun, reason = "", ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_TIMEOUT, check=False)
        lines = done.stdout.splitlines()
        if done.returncode:
            reason = f"importing it ended the process (exit code {done.returncode})"
    except subprocess.TimeoutExpired as late:
        lines = (late.stdout or b"").decode("utf-8", "replace").splitlines()
        reason = f"not imported within {IMPORT_TIMEOUT:.0f} s"
    except OSError as error:
        return {"Python": f"cannot start `{sys.executable}`: {error}"}, {}
    for line in lines:
        facts = reading(line)
        machine = facts.get("machine", machine)
        if "machine" in facts:
            begun = ""
        elif "error" not in facts:
            begun = facts.get("module", begun)
        else:
            begun = ""
            if facts["error"] is not None:
                failed[facts["module"]] = facts["error"]
    if reason and begun:
        failed[begun] = reason
    return failed, machine


def reading(line: str) -> dict[str, Any]:
    """A line of `try_imports`; what a package prints on its own is nothing to us."""
    try:
        facts = json.loads(line)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def import_findings(needed: Sequence[Requirement], failed: Mapping[str, str]) -> Iterator[Finding]:
    """Packages that are there but cannot be imported."""
    again = {IMPORTED_AS.get(r.name.lower(), r.name): f"'{r.name}{r.specifier}'" for r in needed}
    for module, reason in failed.items():
        if module in EXTRAS:
            continue  # said of the extras
        packages = " ".join(TORCH) if module in TORCH or module == TOGETHER else again.get(module, module)
        yield one(f"import {module}", PROBLEM, first_line(reason), f"pip install --force-reinstall {packages}")


def first_line(reason: str) -> str:
    """The first line of an error that says anything."""
    lines = [line.strip() for line in reason.strip().splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"


def extra_findings(extras: Sequence[Requirement], failed: Mapping[str, str]) -> Iterator[Finding]:
    """Optional packages: what is not there is no fault."""
    for requirement in extras:
        name, version = requirement.name, installed(requirement.name)
        extra, use = EXTRAS[name]
        mend = f"pip install '{name}{requirement.specifier}'"
        if version is None:
            yield one(name, OK, f"not installed; only for {use}: `pip install 'mla-cli[{extra}]'`")
        elif not requirement.specifier.contains(version, prereleases=True):
            yield one(name, WARNING, f"{version} is too old for {use}: it needs {requirement.specifier}", mend)
        elif name in failed:
            mend = f"pip install --force-reinstall '{name}{requirement.specifier}'"
            says = f"{version} cannot be imported ({first_line(failed[name])}); it is for {use}"
            yield one(name, WARNING, says, mend)
        else:
            yield one(name, OK, f"{version}, for {use}")


# ---------------------------------------------------------------- the machine


def devices(machine: Mapping[str, Any]) -> Iterator[Finding]:
    """What can be computed on, and with how many threads."""
    if not machine:
        yield one("devices", WARNING, "not known: torch could not be asked", "mend the packages of torch first")
        return
    names = [f"cuda ({', '.join(machine['cuda'])})"] if machine["cuda"] else []
    names += ["mps"] if machine["mps"] else []
    yield one("torch", OK, f"{', '.join(f'{name} {installed(name)}' for name in TORCH)} work together")
    says = f"torch computes on {', '.join([*names, 'cpu'])}; `--device auto` takes the first"
    if not names and any(os.path.exists(path) for path in DRIVERS):
        built = f"built for CUDA {machine['cuda_build']}" if machine["cuda_build"] else "built without CUDA"
        mend = "install the torch for your driver: https://pytorch.org/get-started/locally"
        yield one("devices", WARNING, f"an NVIDIA driver is here, which torch cannot use ({built})", mend)
    else:
        yield one("devices", OK, says)
    threads, cores = machine["threads"], machine["cores"]
    asked = os.environ.get("OMP_NUM_THREADS")
    why = f" (OMP_NUM_THREADS={asked})" if asked else ""
    says = f"{threads} of torch on {cores} cores{why}; `train.threads` in a recipe decides for a run"
    if threads > cores:
        yield one("threads", WARNING, f"{says}: more than cores, which is slower", "unset OMP_NUM_THREADS")
    else:
        yield one("threads", OK, says)


def place(what: str, folder: Path) -> Iterator[Finding]:
    """A folder that is written to: whether that works, with how much room, and whether locks do."""
    item = f"{what} ({folder})"
    option = {"data": "--data-dir DIR", "runs": "--run-dir DIR"}.get(what)
    elsewhere = f"choose another place with `{option}`" if option else "set TMPDIR to another folder"
    if folder.is_symlink() and not folder.exists():
        yield one(item, PROBLEM, f"`{folder}` is a link that leads nowhere", elsewhere)
        return
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        yield one(item, PROBLEM, f"`{there}` is not a folder", elsewhere)
        return
    try:
        with tempfile.TemporaryDirectory(dir=there, prefix=".mla-check-") as folder_name:
            trial = Path(folder_name) / "trial"
            trial.write_bytes(b"x" * 4096)
            with FolderLock(Path(folder_name)) as lock:
                locks = lock.by_kernel()
        usage = shutil.disk_usage(there)
    except OSError as error:
        mend = f"{elsewhere}, or make it writable with `chmod u+rwx {there}`"
        yield one(item, PROBLEM, f"cannot write `{there}`: {error.strerror}", mend)
        return
    says = "" if there == folder.absolute() else "is not there yet, can be made; "
    says += f"{usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB free"
    files = os.statvfs(there).f_favail if hasattr(os, "statvfs") else 0
    full = usage.free < NOTHING or 0 < files < FEW_FILES
    if full or usage.free < LITTLE:
        left = f", room for {files} more files" if 0 < files < FEW_FILES else ""
        state = PROBLEM if full else WARNING
        yield one(item, state, f"{says}{left}", f"free some space, or {elsewhere}")
    elif not locks:
        text = f"{says}; this file system has no locks of the kernel: the file `.NAME.lock` beside a run is its lock"
        yield one(item, WARNING, text, "do not start the same run on two machines at the same moment")
    else:
        yield one(item, OK, f"{says}; can be written, file locks work")


def terminal() -> Finding:
    """Where the tables go."""
    out = sys.__stdout__ or sys.stdout  # while progress is shown, `sys.stdout` is what shows it
    encoding = (out.encoding or "unknown").lower()
    where = f"{shutil.get_terminal_size().columns} columns" if out.isatty() else "no terminal: plain lines"
    if encoding.replace("-", "").replace("_", "") != "utf8":
        text = f"{where}, text as {encoding}: some characters of tables cannot be shown"
        return one("terminal", WARNING, text, "export PYTHONUTF8=1")
    return one("terminal", OK, f"{where}, UTF-8")

"""`mla check` on the installation: what is missing, too old, broken or full is explained, and how to mend it."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import mla
from packaging.requirements import Requirement
from tiny import finish

from mla_cli import locks
from mla_cli.engine import installation as engine
from mla_cli.engine.findings import OK, PROBLEM, WARNING, Finding

MACHINE = {"torch": "2.14.1", "cuda": [], "cuda_build": None, "mps": False, "threads": 2, "cores": 2}
FAKES = {
    "fine": "",
    "noisy": 'print(\'{"module": "fine", "error": "no"\')\nprint(\'[1]\')',
    "broken": "raise ImportError('libcudart.so.13: cannot open shared object file')",
    "leaves": "raise SystemExit(3)",
    "ends": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Modules of all kinds, which a new process finds."""
    folder = tmp_path / "fakes"
    folder.mkdir()
    for name, content in FAKES.items():
        (folder / f"{name}.py").write_text(content + "\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def by_item(found: Any) -> dict[str, Finding]:
    return {finding.item: finding for finding in found}


def versions(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    """Pretend that these are installed, and nothing else."""
    monkeypatch.setattr(engine, "installed", lambda name: installed.get(name.replace("-", "_")))


# ---------------------------------------------------------------- imports


def test_what_cannot_be_imported_is_told_with_its_reason(fakes: Path) -> None:
    failed, machine = engine.imports(["fine", "noisy", "broken", "leaves", "ends", "fine"])
    assert machine == {}
    assert failed == {
        "broken": "ImportError: libcudart.so.13: cannot open shared object file",
        "leaves": "SystemExit: 3",
        "ends": "importing it ended the process (exit code -9)",
    }
    assert engine.imports(["fine", "noisy"]) == ({}, {})


def test_a_file_in_the_current_folder_is_not_the_package(
    fakes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "colorsys.py").write_text("raise ImportError('mine')")
    monkeypatch.chdir(tmp_path)
    assert engine.imports(["colorsys"]) == ({}, {})


def test_an_import_that_hangs_is_ended(fakes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fakes / "hangs.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(engine, "IMPORT_TIMEOUT", 1.0)
    assert engine.imports(["hangs"]) == ({"hangs": "not imported within 1 s"}, {})


def test_broken_packages_are_installed_again() -> None:
    needed = [Requirement("torch>=2.11"), Requirement("pillow>=10.3")]
    failed = {
        "torch": "OSError: bad\n  more",
        "PIL": "ImportError: x",
        "timm": "y",
        engine.TOGETHER: "RuntimeError: nms",
    }
    found = by_item(engine.import_findings(needed, failed))
    assert set(found) == {"import torch", "import PIL", f"import {engine.TOGETHER}"}  # `timm` is an extra
    assert {finding.state for finding in found.values()} == {PROBLEM}
    assert found["import torch"].found == "OSError: bad"
    assert found["import torch"].mend == "pip install --force-reinstall torch torchvision torchaudio"
    assert found["import PIL"].mend == "pip install --force-reinstall 'pillow>=10.3'"


# ---------------------------------------------------------------- versions


def test_missing_and_old_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = [Requirement(text) for text in ("torch>=2.11", "numpy>=1.26", "pandas>=2.2", "torchvision")]
    versions(monkeypatch, torch="2.10.0", pandas="3.1.0rc1", torchvision="0.25.0", mla_cli="0.1")
    wants = {"torchvision": ["torch (>=2.12)", "gdown ; extra == 'gdown'"], "pandas": ["numpy"]}
    monkeypatch.setattr(engine.metadata, "requires", lambda name: wants.get(name))
    found = by_item(engine.versions_of(needed))
    assert found["torch"].mend == "pip install 'torch>=2.11'"
    assert found["torch"].found == "2.10.0 is too old or too new: mla needs >=2.11"
    assert (found["numpy"].found, found["numpy"].mend) == ("not installed", "pip install 'numpy>=1.26'")
    assert found["torchvision"].found == "0.25.0 does not fit: it needs torch>=2.12 (here: 2.10.0)"
    assert found["torchvision"].mend == "pip install --upgrade torch torchvision torchaudio"
    assert "numpy (here: none)" in found["pandas"].found  # a release candidate counts as one
    assert found["packages"].state == PROBLEM and "0 of 4" in found["packages"].found
    (nothing,) = engine.versions_of([])
    assert (nothing.state, nothing.mend) == (WARNING, "install it with `pip install .` in its folder")


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine.python().state == OK
    monkeypatch.setattr(engine.platform, "python_version", lambda: "3.9.1")
    monkeypatch.setattr(engine.metadata, "metadata", lambda name: {"Requires-Python": ">=3.11"})
    assert engine.python().state == PROBLEM
    assert "mla needs >=3.11" in engine.python().found


def test_extras_that_are_not_there_are_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, timm="0.9", transformers="5.1", ray="2.50")
    extras = [Requirement(t) for t in ("timm>=1.0.20", "transformers>=5.0", "ray>=2.40", "wandb>=0.19")]
    found = by_item(engine.extra_findings(extras, {"ray": "ImportError: grpc"}))
    assert {item: finding.state for item, finding in found.items()} == {
        "timm": WARNING, "transformers": OK, "ray": WARNING, "wandb": OK
    }  # fmt: skip
    assert found["timm"].mend == "pip install 'timm>=1.0.20'"
    assert "ImportError: grpc" in found["ray"].found
    assert "`pip install 'mla-cli[track]'`" in found["wandb"].found


# ---------------------------------------------------------------- machine


@pytest.mark.parametrize(
    ("facts", "drivers", "state", "says"),
    [
        ({}, (), OK, "computes on cpu;"),
        ({"cuda": ["A100", "A100"]}, (), OK, "computes on cuda (A100, A100), cpu;"),
        ({"mps": True}, (), OK, "computes on mps, cpu;"),
        ({}, ("/dev/null",), WARNING, "an NVIDIA driver is here, which torch cannot use (built without CUDA)"),
        ({"cuda_build": "13.0"}, ("/dev/null",), WARNING, "(built for CUDA 13.0)"),
    ],
)
def test_devices(facts: Any, drivers: Any, state: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "DRIVERS", drivers)
    found = by_item(engine.devices(MACHINE | facts))
    assert found["devices"].state == state and says in found["devices"].found


def test_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    found = by_item(engine.devices(MACHINE | {"threads": 9}))["threads"]
    assert (found.state, found.mend) == (WARNING, "unset OMP_NUM_THREADS")
    assert by_item(engine.devices({}))["devices"].state == WARNING


def test_a_folder_that_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (good,) = engine.place("data", tmp_path / "not" / "yet")
    assert good.state == OK and good.found.startswith("is not there yet, can be made; ")
    assert "file locks work" in good.found
    assert list(tmp_path.iterdir()) == []  # what was tried is gone
    (tmp_path / "file").touch()
    (bad,) = engine.place("data", tmp_path / "file" / "data")
    assert (bad.state, bad.mend) == (PROBLEM, "choose another place with `--data-dir DIR`")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (bad,) = engine.place("runs", tmp_path / "link")
    assert (bad.state, bad.found) == (PROBLEM, f"`{tmp_path / 'link'}` is a link that leads nowhere")
    (tmp_path / "link").unlink()
    for free, state in ((10e9, OK), (1e9, WARNING), (1e6, PROBLEM)):
        usage = shutil._ntuple_diskusage(20e9, 1e9, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda place, usage=usage: usage)
        (found,) = engine.place("runs", tmp_path)
        assert found.state == state
        assert state == OK or found.mend == "free some space, or choose another place with `--run-dir DIR`"

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkdtemp", refuse)
        (found,) = engine.place("temporary files", tmp_path)
        assert (found.state, found.found) == (PROBLEM, f"cannot write `{tmp_path}`: Permission denied")
        assert "TMPDIR" in found.mend
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(20e9, 1e9, 10e9))
    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    (found,) = engine.place("runs", tmp_path)
    assert found.state == WARNING and "no locks of the kernel" in found.found
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_terminal_that_cannot_show_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine.terminal().state == OK

    class Latin:
        encoding = "ISO-8859-1"

        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "__stdout__", Latin())
    found = engine.terminal()
    assert (found.state, found.mend) == (WARNING, "export PYTHONUTF8=1")


# ---------------------------------------------------------------- the command


def test_torch_that_is_broken_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "imports", lambda modules: ({"torch": "ImportError: libc10.so"}, {}))
    found = mla("check")
    assert found.code == 1
    assert "libc10.so" in found.stdout
    assert "to mend it: pip install --force-reinstall torch torchvision torchaudio" in found.stdout
    assert "1 problem" in found.stdout.splitlines()[-1]
    assert found.stderr == "looking at the installation\n"
    assert list(tmp_path.iterdir()) == []


def test_all_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "imports", lambda modules: ({}, MACHINE))
    found = finish(engine.installation({"data": Path("data")}))
    problems = [finding for finding in found if finding.state == PROBLEM]
    assert problems == [], problems
    assert {"Python", "packages", "torch", "devices", "threads", "data (data)", "terminal"} <= set(by_item(found))


@pytest.mark.slow
def test_the_real_command_with_a_broken_torch(fakes: Path, tmp_path: Path) -> None:
    """In a process of its own, in which `import torch` fails; the heavy extras are left out."""
    (fakes / "torch.py").write_text("raise ImportError('libtorch_cpu.so: undefined symbol')")
    for name in ("timm", "transformers", "ray", "tensorboard", "wandb"):
        (fakes / f"{name}.py").write_text("")
    search = os.pathsep.join([str(fakes), *filter(None, sys.path)])
    words = [sys.executable, "-m", "mla_cli", "check", "--format", "csv"]
    done = subprocess.run(
        words, cwd=tmp_path, env=os.environ | {"PYTHONPATH": search}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "import torch,problem,ImportError: libtorch_cpu.so: undefined symbol" in done.stdout

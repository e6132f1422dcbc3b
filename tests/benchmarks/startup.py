"""What does `mla` spend before, between and after the work?

    python tests/benchmarks/startup.py

Every figure is the wall time of a whole process, started in a fresh folder with the built-in data `mfeat` prepared:

- `mla train --recipe mfeat` less its epochs (as `timing.jsonl` has them, with validation, history and checkpoints) and
  less `python -c "import torch"`: at most 1.5 s
- `mla eval` of that run, from its predictions: below 1.5 s, and torch is not imported
- `mla --help`: below 0.3 s

All are run in turn, `REPETITIONS` times, and the medians compared. Exit code 1 if one exceeds its limit. Processor time
is printed beside it: on a busy machine it says more.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPETITIONS = 5
MLA = [sys.executable, "-m", "mla_cli"]
COMMANDS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "train": [*MLA, "train", "--recipe", "mfeat", "--force"],
    "eval": [*MLA, "eval"],
    "help": [*MLA, "--help"],
}


def timed(command: list[str], folder: Path) -> tuple[float, float]:
    """Wall and processor seconds of a process."""
    before, begin = os.times(), time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    wall, after = time.perf_counter() - begin, os.times()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, spent


def epoch_seconds(folder: Path) -> float:
    """The run's epochs, all that `timing.jsonl` tells of them."""
    (file,) = folder.glob("runs/*/timing.jsonl")
    return sum(float(json.loads(line)["all"]) for line in file.read_text("utf-8").splitlines())


def imports_torch(folder: Path) -> bool:
    """Whether `mla eval` imports torch."""
    asked = [sys.executable, "-X", "importtime", *MLA[1:], "eval"]
    told = subprocess.run(asked, cwd=folder, capture_output=True, text=True, check=True).stderr
    return any(line.split("|")[-1].strip() == "torch" for line in told.splitlines())


def main() -> int:
    """Measure, print, and return 0 if every limit is kept."""
    walls: dict[str, list[float]] = {name: [] for name in COMMANDS}
    spent: dict[str, list[float]] = {name: [] for name in COMMANDS}
    epochs: list[float] = []
    with tempfile.TemporaryDirectory(prefix="mla-benchmark-") as name:
        folder = Path(name)
        timed([*MLA, "prepare", "mfeat"], folder)
        timed(COMMANDS["train"], folder)  # the first run compiles modules and fills the file cache
        for _ in range(REPETITIONS):
            for kind, command in COMMANDS.items():
                wall, processor = timed(command, folder)
                walls[kind].append(wall)
                spent[kind].append(processor)
            epochs.append(epoch_seconds(folder))
        torch_imported = imports_torch(folder)
    reference = statistics.median(walls["import torch"])
    trained = [wall - inside for wall, inside in zip(walls["train"], epochs, strict=True)]
    figures = {
        "mla train outside its epochs": (statistics.median(trained) - reference, 1.5, "beyond `import torch`"),
        "mla eval": (statistics.median(walls["eval"]), 1.5, "a whole process"),
        "mla --help": (statistics.median(walls["help"]), 0.3, "a whole process"),
    }
    for kind in COMMANDS:
        wall, processor = statistics.median(walls[kind]), statistics.median(spent[kind])
        print(f"{kind:<13} {wall:6.2f} s wall, {processor:6.2f} s processor")
    print(f"epochs        {statistics.median(epochs):6.2f} s wall (medians of {REPETITIONS})")
    for kind, (seconds, limit, what) in figures.items():
        print(f"RESULT {kind} | {seconds:.2f} | s | <={limit:g} | {what}; import torch takes {reference:.2f} s")
    print(f"RESULT mla eval imports torch | {int(torch_imported)} | times | <=0 | -X importtime")
    return 0 if not torch_imported and all(seconds <= limit for seconds, limit, _ in figures.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

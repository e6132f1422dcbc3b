"""Does memory stay flat from 1,000 to 100,000 samples? A simulated store of three modalities, and every step on it.

    python tests/benchmarks/memory.py [--quick]

The store: two modalities of 512 floats and pictures of 3 x 32 x 32 bytes, 7 kB a sample in all. On it `mla train` (one
epoch of `mla` with three perceptrons, batch 64, one thread) and `mla eval` with a missing rate run as processes of
their own; `mla prepare table` makes another one from three arrays of 512 floats.

Memory is what the kernel counts of a process (and its children), looked at every few milliseconds: anonymous pages are
the program's own and must be flat; pages of mapped files are told apart, as the kernel takes those back when others
need memory. Two things may grow, and are bounded here: inputs that the loader keeps in memory where they are small, up
to `RESIDENT_BYTES` of each split, and what the samples' index and predictions take, `PER_SAMPLE`. They are told apart
by training a second time without the first.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml
from _big_store import SPECS, write_store, write_table

from mla_cli.data import loader

COUNTS = (1_000, 10_000, 100_000)
PER_SAMPLE = 2_500  # bytes: id, label, group, positions and logits of a sample, as columns and as Python objects
SPLITS = 3  # each keeps small inputs in memory
EPOCHS, BATCH = 3, 64
LOOK = 0.005  # seconds between two looks at a process's memory
RECIPE = {
    "name": "big",
    "dataset": {"name": "table"},
    "encoders": {m: {"name": "mlp", "hidden": 64} for m in SPECS},
    "shared_width": 64,
    "train": {"batch_size": BATCH, "lr": 0.01, "select_on": "last"},
}
# `mla` with another limit for what the loader keeps in memory
WITHOUT = """
import sys
from mla_cli.data import loader
assert hasattr(loader, "RESIDENT_BYTES")
loader.RESIDENT_BYTES = 0
from mla_cli.cli import main
main()
"""


@dataclass(frozen=True)
class Used:
    """Of one command: wall seconds, and peaks over it and its children, in bytes."""

    seconds: float
    anonymous: int
    mapped: int
    stdout: str


def resident(process: int) -> tuple[int, int]:
    """Bytes of anonymous pages and of pages of files; zeros of a process that has ended."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        return int(fields["RssAnon"].split()[0]) * 1024, int(fields["RssFile"].split()[0]) * 1024
    except (OSError, KeyError):
        return 0, 0


def family(process: int) -> list[int]:
    """A process and all that it has started."""
    found = [process]
    for pid in found:
        try:
            for path in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, path.read_text().split())
        except OSError:
            continue
    return found


def used(words: list[str]) -> Used:
    """Run a command to its end and watch it."""
    begin, anonymous, mapped = time.perf_counter(), 0, 0
    with tempfile.TemporaryFile("w+") as out:
        with subprocess.Popen(
            [sys.executable, *words], stdout=out, env=os.environ | {"OMP_NUM_THREADS": "1"}
        ) as process:
            while process.poll() is None:
                sizes = [resident(pid) for pid in family(process.pid)]
                anonymous = max(anonymous, sum(a for a, _ in sizes))
                mapped = max(mapped, sum(f for _, f in sizes))
                time.sleep(LOOK)
        if process.returncode:
            raise SystemExit(f"{' '.join(words[-12:])}: exit code {process.returncode}")
        seconds = time.perf_counter() - begin
        out.seek(0)
        return Used(seconds, anonymous, mapped, out.read())


def mla(*words: str) -> list[str]:
    return ["-m", "mla_cli", *words]


def folder_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def train(folder: Path, count: int, resident_inputs: bool) -> tuple[Used, float, Path]:
    """One training: what it used, seconds of a round in the fastest epoch, and its run folder."""
    epochs = EPOCHS if count < COUNTS[-1] else 1
    runs = folder / f"runs-{count}-{resident_inputs}"
    words = ["train", "--recipe", str(folder / "big.yaml"), "--set", f"dataset.store=big{count}", "-q"]
    words += [
        "--set",
        f"train.epochs={epochs}",
        "--set",
        "train.threads=1",
        "--data-dir",
        str(folder / "data"),
        "--run-dir",
        str(runs),
    ]
    found = used(mla(*words) if resident_inputs else ["-c", WITHOUT, *words])
    run = next(path.parent for path in runs.glob("*/run.json"))
    seconds = [json.loads(line)["train"] for line in (run / "timing.jsonl").read_text().splitlines()]
    samples = json.loads((run / "run.json").read_text())["data"]["train"]["samples"]
    return found, min(seconds) / -(-samples // BATCH), run


def megabytes(count: float) -> str:
    return f"{count / 1e6:.0f}"


def result(name: str, value: float, unit: str, limit: str, what: str) -> bool:
    """Print a figure; False if it breaks its limit."""
    print(f"RESULT {name} | {value:.4g} | {unit} | {limit} | {what}", flush=True)
    return limit == "-" or value <= float(limit.removeprefix("<="))


def flat(name: str, peaks: dict[int, Used], allowed: float, what: str) -> bool:
    """Print the growth of anonymous memory from the smallest to the largest count; True if it is within `allowed`."""
    first, last = min(peaks), max(peaks)
    for count, found in peaks.items():
        text = f"{megabytes(found.anonymous)} MB anonymous, {megabytes(found.mapped)} MB of mapped files"
        print(f"{name}, {count:,} samples: peak {text}; {found.seconds:.1f} s")
    growth = (peaks[last].anonymous - peaks[first].anonymous) / 1e6
    what = f"growth of anonymous memory, {first:,} to {last:,} samples; {what}"
    result(f"{name}, mapped", peaks[last].mapped / 1e6, "MB", "-", f"peak pages of mapped files, {last:,} samples")
    return result(f"{name}, memory", growth, "MB", f"<={allowed / 1e6:.0f}", what)


def main() -> int:
    """Everything in a temporary folder; 0 if memory is as flat as stated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10,000 samples at most")
    wanted = parser.parse_args()
    counts = COUNTS[:2] if wanted.quick else COUNTS
    if resident(os.getpid()) == (0, 0):
        raise SystemExit("memory.py needs Linux: it reads RssAnon and RssFile of /proc/PID/status")
    last = max(counts)
    index = PER_SAMPLE * last
    kept = True
    with tempfile.TemporaryDirectory(prefix="mla-benchmark-") as name:
        folder = Path(name)
        (folder / "big.yaml").write_text(yaml.safe_dump(RECIPE))
        trained, bare, scored, made = {}, {}, {}, {}
        rounds: dict[int, tuple[float, float]] = {}  # seconds with small inputs kept in memory, and without
        for count in counts:
            store = folder / "data" / f"big{count}"
            write_store(store, count)
            print(f"store of {count:,} samples: {megabytes(folder_bytes(store))} MB", flush=True)
            trained[count], kept_round, run = train(folder, count, True)
            bare[count], bare_round, _ = train(folder, count, False)
            rounds[count] = kept_round, bare_round
            words = ["eval", str(run), "--missing-rate", "0.3", "--mask-seeds", "0..4", "--format", "csv", "-q"]
            scored[count] = used(mla(*words))
        kept &= flat("train", trained, SPLITS * loader.RESIDENT_BYTES + index, "inputs kept in memory, and the index")
        kept &= flat("train, nothing kept", bare, index, "the index alone")
        kept &= flat("eval", scored, index, "`mla eval --missing-rate 0.3`, five mask seeds")
        for i, what in enumerate(("small inputs kept in memory", "nothing kept")):
            growth = rounds[last][i] / rounds[min(counts)][i]
            result(f"round, {what}", growth, "ratio", "-", f"seconds of a round, {last:,} / {min(counts):,} samples")
        seconds = rounds[last][0] * -(-round(0.6 * last) // BATCH)
        result("epoch", seconds, "s", "-", f"training steps of an epoch, {last:,} samples, three fifths train")
        result("eval", scored[last].seconds, "s", "-", f"`mla eval --missing-rate 0.3`, {last:,} samples, a fifth test")
        for count in () if wanted.quick else counts[-2:]:  # fewer are made without worker processes
            table = write_table(folder / f"raw{count}", count)
            words = ["prepare", "table", "--table", str(table), "--root", str(table.parent), "-q"]
            made[count] = used(mla(*words, "--data-dir", str(folder / f"made{count}")))
        if made:
            what = "`mla prepare table`, all processes; what they share counts in each"
            kept &= flat("prepare", made, index, what)
            result("prepare", made[last].seconds, "s", "-", f"`mla prepare table`, {last:,} samples x 3 vectors of 512")
            each = folder_bytes(folder / f"made{last}") / last
            result("prepared", each, "B", "-", "a sample of that store, index included; its vectors are 6,144 B")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())

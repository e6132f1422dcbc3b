"""How well does a grid scale over cores? Eight equal runs with one worker and with two, in turn.

    python tests/benchmarks/grid.py

The whole command is timed: start of `mla ablate`, its workers, training, the tables. Medians of `REPETITIONS`; exit
code 1 if two workers take more than `MOST` of the time of one. Needs two cores that nobody else uses: the load before
each measurement is printed.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MOST = 0.6  # of one worker's time
REPETITIONS = 3
RUNS, EPOCHS = 8, 128  # start and tables, some eight seconds that do not scale, stay small beside the runs
GRID = f"ablate --recipe mfeat --over method.hgm=off --seeds 0..{RUNS - 1} --missing-rates 0 -q"
GRID += f" --set train.epochs={EPOCHS}"


def seconds(folder: Path, number: int, workers: int) -> float:
    """Of one whole grid in a run folder of its own."""
    run_dir = folder / f"runs-{number}-{workers}"
    words = [sys.executable, "-m", "mla_cli", *GRID.split(), "--workers", str(workers), "--run-dir", str(run_dir)]
    begun = time.perf_counter()
    subprocess.run([*words, "--data-dir", str(folder / "data")], check=True, stdout=subprocess.DEVNULL)
    taken = time.perf_counter() - begun
    finished = len(list(run_dir.glob("mfeat-*/predictions.parquet")))
    assert finished == RUNS, f"{finished} of {RUNS} runs"
    return taken


def main() -> None:
    times: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare = [sys.executable, "-m", "mla_cli", "prepare", "mfeat", "-q", "--data-dir", str(folder / "data")]
        subprocess.run(prepare, check=True, stdout=subprocess.DEVNULL)
        for number in range(REPETITIONS):
            for workers in (1, 2) if number % 2 == 0 else (2, 1):
                load = os.getloadavg()[0]
                times[workers].append(seconds(folder, number, workers))
                print(f"{workers} worker(s): {times[workers][-1]:.1f} s (load before: {load:.1f})", flush=True)
    one, two = (statistics.median(times[workers]) for workers in (1, 2))
    print(f"{RUNS} runs of {EPOCHS} epochs: {one:.1f} s with one worker, {two:.1f} s with two: {two / one:.2f}")
    print(f"limit {MOST}")
    print(f"RESULT two workers | {two / one:.3f} | ratio | <={MOST} | wall time of {RUNS} runs, two workers / one")
    raise SystemExit(two / one > MOST)


if __name__ == "__main__":
    main()

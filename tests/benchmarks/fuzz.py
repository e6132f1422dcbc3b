"""Hours of hostile files: python tests/benchmarks/fuzz.py [COUNT] [--first N] [--kind NAME] [--jobs J]

Every input is made and read as in tests/fuzz.py, in child processes that can be killed. Prints kinds x outcomes, the
largest memory of a child, and for whatever ended in a traceback, a crash or a hang the number that makes it again:

    python tests/benchmarks/fuzz.py 1 --first NUMBER

decoded   used as it is                    traceback  an exception that the product did not foresee
listed    a problem with its property      crash      the process died (in `mla prepare` a worker, which is listed)
error     one error with a hint, exit 1    hang       more than 10 s of processor time, or a minute in all

Exit code 1 if there is any of the last three, or if a child held more than 2 GB.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
CPU_SECONDS, WALL_SECONDS = 10.0, 60.0  # of one input; the second for one that waits
PEAK = 2 * 1024**3
CHUNK = 500  # inputs of one child
COLUMNS = ("decoded", "listed", "error", "traceback", "crash", "hang")


def cpu_of(pid: int) -> float:
    """Processor seconds of a process so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Tally:
    """What became of all inputs so far."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kinds: dict[str, Counter[str]] = defaultdict(Counter)
        self.bad: list[str] = []
        self.peak = (0, -1)
        self.slowest = (0.0, -1)

    def add(self, kind: str, outcome: str, number: int, detail: str = "", peak: int = 0, seconds: float = 0.0) -> None:
        with self.lock:
            self.kinds[kind][outcome] += 1
            self.peak = max(self.peak, (peak, number))
            self.slowest = max(self.slowest, (seconds, number))
            if outcome in COLUMNS[3:]:
                self.bad.append(f"{outcome} at {number} ({kind}): {detail}")
                print(self.bad[-1], file=sys.stderr, flush=True)


def run_child(folder: Path, first: int, count: int, kind: str | None, tally: Tally) -> int:
    """One child until it ends, dies or hangs; the number of the next input."""
    words = [sys.executable, str(TESTS / "fuzz.py"), str(folder), str(first), str(count), *([kind] if kind else [])]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines: queue.Queue[str | None] = queue.Queue()
    errors: list[str] = []

    def read() -> None:
        for line in process.stdout or ():
            lines.put(line)
        lines.put(None)

    threads = [threading.Thread(target=read), threading.Thread(target=lambda: errors.extend(process.stderr or ()))]
    for thread in threads:
        thread.start()
    number, name, begun, cpu, running = first, "?", time.monotonic(), 0.0, False
    outcome = None
    while outcome is None:
        try:
            line = lines.get(timeout=0.5)
        except queue.Empty:
            used, waited = cpu_of(process.pid) - cpu, time.monotonic() - begun
            if running and (used > CPU_SECONDS or waited > WALL_SECONDS):
                process.kill()
                outcome = ("hang", f"{used:.0f} s of processor time, {waited:.0f} s in all")
            continue
        if line is None:
            break
        found = json.loads(line)
        if "begin" in found:
            number, name, begun, cpu, running = (
                found["begin"],
                found["kind"],
                time.monotonic(),
                cpu_of(process.pid),
                True,
            )
        else:
            running = False
            if "text" in found:
                print(found["text"], file=sys.stderr)
            seconds = cpu_of(process.pid) - cpu
            tally.add(name, found["outcome"], number, found.get("error", ""), found["peak"], seconds)
    process.wait()
    for thread in threads:
        thread.join()
    if outcome is None and process.returncode:
        if not running:
            os._exit(print("the child cannot start:", *errors, file=sys.stderr) or 2)
        outcome = ("crash", f"exit code {process.returncode}: {''.join(errors)[-300:]}")
    if outcome:
        tally.add(name, outcome[0], number, outcome[1])
        return number + 1
    return first + count


def table(tally: Tally) -> str:
    """Kinds x outcomes."""
    lines = ["| kind | inputs | " + " | ".join(COLUMNS) + " |", "|---|" + "--:|" * (len(COLUMNS) + 1)]
    total: Counter[str] = sum(tally.kinds.values(), Counter())
    for name, counts in [*tally.kinds.items(), ("all", total)]:
        lines.append(f"| {name} | {counts.total():,} | " + " | ".join(f"{counts[c]:,}" for c in COLUMNS) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kind", help="only this one, such as `recipe`")
    parser.add_argument("--jobs", type=int, default=1)
    chosen = parser.parse_args()
    tally, begun = Tally(), time.monotonic()
    chunks: queue.Queue[tuple[int, int]] = queue.Queue()
    for first in range(chosen.first, chosen.first + chosen.count, CHUNK):
        chunks.put((first, min(first + CHUNK, chosen.first + chosen.count)))

    def work(folder: Path) -> None:
        while True:
            try:
                first, end = chunks.get_nowait()
            except queue.Empty:
                return
            while first < end:
                first = run_child(folder, first, end - first, chosen.kind, tally)

    with tempfile.TemporaryDirectory() as scratch:
        threads = [threading.Thread(target=work, args=(Path(scratch, str(i)),)) for i in range(chosen.jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(table(tally))
    print(
        f"\n{time.monotonic() - begun:.0f} s; largest memory {tally.peak[0] / 1e9:.2f} GB, reached at {tally.peak[1]}; most processor time {tally.slowest[0]:.1f} s, at {tally.slowest[1]}"
    )
    for line in tally.bad:
        print(line)
    return int(bool(tally.bad) or tally.peak[0] > PEAK)


if __name__ == "__main__":
    sys.exit(main())

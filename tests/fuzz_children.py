"""Children that read hostile files (tests/fuzz.py), watched by a process that can kill them."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

CHILD = Path(__file__).with_name("fuzz.py")
CPU_SECONDS, WALL_SECONDS = 10.0, 60.0  # of one input; the second for one that waits
PEAK = 2 * 1024**3
COLUMNS = ("decoded", "listed", "error", "traceback", "crash", "hang")


def cpu_of(pid: int) -> float:
    """Processor seconds of a process so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Tally:
    """What became of all inputs so far. tell: hears of what went wrong at once."""

    def __init__(self, tell: Callable[[str], None] = lambda text: None) -> None:
        self.tell = tell
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
                self.tell(self.bad[-1])


def run_child(folder: Path, first: int, count: int, kind: str | None, tally: Tally) -> int:
    """One child until it ends, dies or hangs; the number of the next input."""
    words = [sys.executable, str(CHILD), str(folder), str(first), str(count), *([kind] if kind else [])]
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
                tally.tell(found["text"])
            seconds = cpu_of(process.pid) - cpu
            tally.add(name, found["outcome"], number, found.get("error", ""), found["peak"], seconds)
    process.wait()
    for thread in threads:
        thread.join()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    if outcome is None and process.returncode:
        if not running:
            raise RuntimeError("the child cannot start: " + "".join(errors))
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

"""Hours of hostile files: python tests/long/fuzz.py [COUNT] [--first N] [--kind NAME] [--jobs J]

Every input is made and read as in tests/fuzz.py, in child processes that can be killed. Prints kinds x outcomes, the
largest memory of a child, and for whatever ended in a traceback, a crash or a hang the number that makes it again:

    python tests/long/fuzz.py 1 --first NUMBER

decoded   used as it is                    traceback  an exception that the product did not foresee
listed    a problem with its property      crash      the process died (in `mla prepare` a worker, which is listed)
error     one error with a hint, exit 1    hang       more than 10 s of processor time, or a minute in all

Exit code 1 if there is any of the last three, or if a child held more than 2 GB.
"""

import argparse
import queue
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fuzz_children import PEAK, Tally, run_child, table

CHUNK = 500  # inputs of one child


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kind", help="only this one, such as `recipe`")
    parser.add_argument("--jobs", type=int, default=1)
    chosen = parser.parse_args()
    tally, begun = Tally(lambda text: print(text, file=sys.stderr, flush=True)), time.monotonic()
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
        places = [Path(scratch, str(i)) for i in range(chosen.jobs)]
        threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in places]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            print("interrupted; so far:", file=sys.stderr)
    print(table(tally))
    print(
        f"\n{time.monotonic() - begun:.0f} s; largest memory {tally.peak[0] / 1e9:.2f} GB, reached at {tally.peak[1]};"
    )
    print(f"most processor time {tally.slowest[0]:.1f} s, at {tally.slowest[1]}")
    for line in tally.bad:
        print(line)
    return int(bool(tally.bad) or tally.peak[0] > PEAK)


if __name__ == "__main__":
    sys.exit(main())

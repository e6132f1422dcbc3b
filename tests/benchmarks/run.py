"""Run the benchmarks one after another, print their figures as one table, and write it to RESULTS.md beside this file.

    python tests/benchmarks/run.py [--only NAME ...] [--list] [--quick] [--output FILE]

A benchmark is any other script of this folder whose name does not begin with `_`. It prints what it likes, and a line

    RESULT <name> | <value> | <unit, or ratio> | <limit: <=X, >=X, or -> | <what is compared>

for each figure. Exit code 1 if a limit is broken, if a script ends with another exit code than 0 (1 where it broke a
limit) or if it prints no figure: such a script is in the table as failed. `--quick` is passed on to the scripts that
know it, which then measure less. RESULTS.md is written after a whole run only: with `--only` or `--quick` name a file.
Nothing else should run meanwhile. For each script the table says how much of all cores' time other processes took.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mla_cli.files import write_text

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "RESULTS.md"
MARK = "RESULT "
FIELDS = "<name> | <value> | <unit or ratio> | <limit> | <what is compared>"
LIMIT = re.compile(r"(<=|>=)\s*([-+]?[\d.]+(?:e[-+]?\d+)?)$", re.IGNORECASE)
COLUMNS = ("benchmark", "figure", "value", "limit", "kept", "what is compared", "script took", "others took")
PACKAGES = ("torch", "numpy", "pandas", "pyarrow", "scipy", "pillow", "av", "torchaudio", "torchvision", "typer")
IDLE = 0.05  # share of all cores' time that other processes may take before the table says that it was not idle


@dataclass(frozen=True)
class Figure:
    """One RESULT line."""

    name: str
    value: float
    unit: str
    limit: str
    what: str

    @property
    def kept(self) -> bool | None:
        """Whether the value is within its limit; None where it has none."""
        found = LIMIT.match(self.limit)
        if found is None:
            return None
        bound = float(found[2])
        # a NaN keeps no limit
        return self.value <= bound if found[1] == "<=" else self.value >= bound


@dataclass(frozen=True)
class Outcome:
    """What a script said. others: share of all cores' time that other processes took; None where no kernel tells."""

    script: str
    figures: list[Figure]
    failures: list[str]
    seconds: float
    load: float
    others: float | None

    @property
    def kept(self) -> bool:
        return not self.failures and all(figure.kept is not False for figure in self.figures)


# ---------------------------------------------------------------- reading


def parse(line: str) -> Figure:
    """Read one RESULT line. Raises ValueError for one that does not have the five fields."""
    fields = [field.strip() for field in line.removeprefix(MARK).split("|", 4)]
    if len(fields) != 5 or not fields[0]:
        raise ValueError(f"not `{FIELDS}`: {line}")
    name, value, unit, limit, what = fields
    if limit != "-" and not LIMIT.match(limit):
        raise ValueError(f"the limit `{limit}` is not <=X, >=X or -: {line}")
    return Figure(name, float(value), unit, limit, what)


def outcome(script: str, lines: Iterable[str], code: int, seconds: float, load: float, others: float | None) -> Outcome:
    """What a script's output and exit code come to."""
    figures, failures = [], []
    for line in lines:
        if line.startswith(MARK):
            try:
                figures.append(parse(line.rstrip("\n")))
            except ValueError as error:
                failures.append(str(error))
    broken = any(figure.kept is False for figure in figures)
    if code != 0 and not (code == 1 and broken):
        failures.append(f"exit code {code}")
    if not figures:
        failures.append("no RESULT line")
    return Outcome(script, figures, failures, seconds, load, others)


def scripts(folder: Path = FOLDER) -> dict[str, Path]:
    """The benchmarks by name."""
    found = sorted(folder.glob("*.py"))
    return {path.stem: path for path in found if path.name != "run.py" and not path.name.startswith("_")}


# ---------------------------------------------------------------- running


def busy_seconds() -> float | None:
    """Processor time that all processes of this machine have taken, in seconds; None where no kernel tells."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _, _, interrupts, soft = map(int, fields[1:8])
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


def children_seconds() -> float:
    """Processor time of our children that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def run(path: Path, quick: bool = False) -> Outcome:
    """Run one script to its end, showing what it prints on stderr."""
    words = [sys.executable, str(path)]
    if quick and '"--quick"' in path.read_text():
        words.append("--quick")
    load, own, all_before, begin = os.getloadavg()[0], children_seconds(), busy_seconds(), time.perf_counter()
    lines = []
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            sys.stderr.write(f"  {line}")
    seconds, all_after = time.perf_counter() - begin, busy_seconds()
    others = None
    if all_before is not None and all_after is not None:
        taken = all_after - all_before - (children_seconds() - own)
        others = max(0.0, taken / (seconds * (os.cpu_count() or 1)))
    return outcome(path.stem, lines, process.returncode, seconds, load, others)


# ---------------------------------------------------------------- the table


def rows(outcomes: list[Outcome]) -> list[tuple[str, ...]]:
    """One row per figure and per failure."""
    found = []
    for done in outcomes:
        others = "" if done.others is None else f"{done.others:.0%}"
        end = (f"{done.seconds:.0f} s", others)
        for figure in done.figures:
            kept = {None: "", True: "yes", False: "NO"}[figure.kept]
            limit = "" if figure.limit == "-" else figure.limit
            value = shown(figure.value) if figure.unit == "ratio" else f"{shown(figure.value)} {figure.unit}"
            found.append((done.script, figure.name, value, limit, kept, figure.what, *end))
        found += [(done.script, "", "failed", "", "NO", failure, *end) for failure in done.failures]
    return found


def shown(value: float) -> str:
    """Four digits, and whole numbers whole.

    >>> shown(0.93256), shown(1234567.0), shown(0.0000012)
    ('0.9326', '1234567', '1.2e-06')
    """
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(outcomes: list[Outcome]) -> str:
    """The rows as a Markdown table that is aligned in a terminal too."""
    cells = [COLUMNS, *([cell.replace("|", "\\|") for cell in row] for row in rows(outcomes))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|:" + "|:".join("-" * (width + 1) for width in widths) + "|")
    return "\n".join(lines)


def machine() -> list[str]:
    """What the figures were measured on and with."""
    model = platform.processor() or platform.machine()
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = found[1] if found else model
        memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (OSError, ValueError):
        memory = "unknown"
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    return [
        f"Processor: {model}, {os.cpu_count()} cores, {memory} of memory",
        f"System: {platform.platform()}",
        f"Python {platform.python_version()}, {', '.join(versions)}",
        f"Threads: OMP_NUM_THREADS {threads}; a script that sets its own number says so",
        f"Commit: {commit()}",
    ]


def commit() -> str:
    """The commit of this tree, and whether anything but the results differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(FOLDER), *words], capture_output=True, text=True, check=True).stdout

    try:
        name, changed = git("rev-parse", "--short=12", "HEAD").strip(), git("status", "--porcelain").splitlines()
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git repository)"
    changed = [line for line in changed if not line.endswith(RESULTS.name)]
    return name + (f", with {len(changed)} changed files" if changed else ", nothing changed")


def document(outcomes: list[Outcome], when: datetime, facts: list[str], quick: bool = False) -> str:
    """RESULTS.md as a whole."""
    broken = sum(figure.kept is False for done in outcomes for figure in done.figures)
    failed = sum(bool(done.failures) for done in outcomes)
    shares = [done.others for done in outcomes if done.others is not None]
    busy = [f"{done.script} ({done.others:.0%})" for done in outcomes if done.others is not None and done.others > IDLE]
    if not shares:
        idle = "unknown, this system does not tell"
    elif busy:
        idle = f"NO, other processes took more than {IDLE:.0%} of all cores' time during {', '.join(busy)}"
    else:
        idle = f"yes, other processes took at most {max(shares):.0%} of all cores' time during any script"
    loads = ", ".join(f"{done.script} {done.load:.2f}" for done in outcomes)
    facts = [
        f"Date: {when:%Y-%m-%d %H:%M} UTC" + (", with --quick: fewer repetitions" if quick else ""),
        *facts,
        f"Idle: {idle}",
        f"Load average before each script (it still holds the script before): {loads}",
        f"Limits broken: {broken}; scripts failed: {failed}; figures: {sum(len(done.figures) for done in outcomes)}",
    ]
    head = "# Benchmark results\n\nWritten by `python tests/benchmarks/run.py`; do not edit.\n\n"
    return head + "".join(f"- {fact}\n" for fact in facts) + "\n" + table(outcomes) + "\n"


def main(words: list[str] | None = None, folder: Path = FOLDER) -> int:
    """Run what is asked for; 0 if every script kept its limits."""
    known = scripts(folder)
    parser = argparse.ArgumentParser(description="Run the benchmarks and write their figures to RESULTS.md.")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(known), help="these benchmarks")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and run none")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, where a script knows how")
    parser.add_argument("--output", type=Path, help="file to write (default, for a whole run: RESULTS.md)")
    wanted = parser.parse_args(words)
    if wanted.list:
        for name, path in known.items():
            print(f"{name:<18} {path.read_text().removeprefix(chr(34) * 3).splitlines()[0]}")
        return 0
    outcomes = []
    try:
        for name in wanted.only or known:
            sys.stderr.write(f"{name}\n")
            outcomes.append(run(known[name], wanted.quick))
    except KeyboardInterrupt:
        print(table(outcomes))
        sys.stderr.write(f"interrupted after {len(outcomes)} scripts; no file is written\n")
        return 130
    print(table(outcomes))
    partial = wanted.only or wanted.quick
    target = wanted.output or (None if partial else folder / RESULTS.name)
    if target is not None:
        write_text(target, document(outcomes, datetime.now(UTC), machine(), wanted.quick))
        sys.stderr.write(f"wrote {target}\n")
    return 0 if all(done.kept for done in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

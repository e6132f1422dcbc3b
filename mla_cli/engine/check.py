"""`mla check`: is everything whole? The installation, and every file of runs, prepared sets, ablations and recipes that
has a checksum. Reads only; what it tries, it tries in temporary folders that are gone afterwards.
"""

import tempfile
from functools import partial
from pathlib import Path

from mla_cli.engine.events import Note, Steps
from mla_cli.engine.findings import OK, PROBLEM, STATES, Finding
from mla_cli.engine.installation import installation
from mla_cli.errors import MlaError


def check(path: str | None, data_dir: Path, run_dir: Path) -> Steps[list[Finding]]:
    """Check what a path or name means; without one the installation, the runs and the prepared sets found here.

    The value holds a line for each thing that was looked at, problems last. Raises MlaError for a path of nothing.
    """
    found: list[Finding] = []
    if path is None:
        found += yield from installation(
            {"data": data_dir, "runs": run_dir, "temporary files": Path(tempfile.gettempdir())}
        )
        places = [place for place in (data_dir, run_dir) if place.is_dir()]
    else:
        places = [find(path, data_dir, run_dir)]
    try:
        found += yield from files_below(places, data_dir)
    except ImportError as error:  # a broken package must not hide what else was found
        text = f"runs and prepared sets cannot be read: {error}"
        found.append(Finding("installation", "files", PROBLEM, text, "mend the packages first"))
    for place in (data_dir, run_dir) if path is None else ():
        if not place.is_dir():
            found.append(Finding("folder", str(place), OK, "not there yet: nothing to check"))
    return sorted(found, key=lambda finding: STATES.index(finding.state))


def find(path: str, data_dir: Path, run_dir: Path) -> Path:
    """A path, or the name of a run or a prepared set. Raises MlaError where there is none."""
    for place in (Path(path), run_dir / path, data_dir / path):
        if place.exists():
            return place
    raise MlaError(
        f"nothing to check at `{path}`",
        f"name a run, a prepared set, a folder or a recipe file; `mla status` lists what is under {run_dir} and "
        f"{data_dir}",
    )


def files_below(places: list[Path], data_dir: Path) -> Steps[list[Finding]]:
    """Check everything of ours at or below some places, each once."""
    from mla_cli.engine import check_runs, check_stores
    from mla_cli.engine.check_files import Reader, settled, things_at

    things = list(dict.fromkeys(thing for place in places for thing in things_at(place)))
    if not things and places:
        yield Note(f"nothing of mla at {' or '.join(map(str, places))}")
    reader = Reader(sum(thing.size() for thing in things))
    found: list[Finding] = []
    for thing in things:
        if thing.kind == "store":
            look = partial(check_stores.check_store, thing.path, reader)
            found += yield from settled(look, thing.path / "manifest.json")
        elif thing.kind == "partial":
            found += yield from check_stores.check_partial(thing.path, reader)
        elif thing.kind == "run":
            look = partial(check_runs.check_run, thing.path, reader, data_dir)
            found += yield from settled(look, thing.path / "run.json")
        elif thing.kind == "ablation":
            look = partial(check_runs.check_ablation, thing.path, reader)
            found += yield from settled(look, thing.path / "settings.json")
        elif thing.kind == "recipe":
            found.append(check_runs.check_recipe(thing.path))
        elif thing.kind == "unreadable":
            text = f"cannot be read: {thing.reason}"
            found.append(Finding("folder", str(thing.path), PROBLEM, text, "mend its permissions"))
        else:
            found += check_runs.check_lock(thing.path)
    return found

"""Which run or prepared set a command means: the one named, or the latest."""

from pathlib import Path

from mla_cli.engine.going_on import train_command
from mla_cli.engine.run import Run
from mla_cli.errors import MlaError
from mla_cli.files import write_text


def remember(folder: Path, name: str) -> None:
    """Note the latest run or data set: what commands take when nothing is named."""
    write_text(folder / ".last", name + "\n")


def latest(folder: Path) -> str | None:
    """The name that `remember` noted, if that folder still exists."""
    path = folder / ".last"
    if not path.is_file():
        return None
    name = path.read_text("utf-8", errors="replace").strip()  # damaged, it names nothing
    return name if name and (folder / name).is_dir() else None


def find_run(source: str | None, run_dir: Path) -> Run:
    """A finished run by path or name; the latest where none is named. Raises MlaError with what to do instead."""
    if source is None:
        name = latest(run_dir)
        if name is None:
            raise MlaError(f"no run to evaluate under `{run_dir}`", "train one with `mla train`")
        path = run_dir / name
    else:
        path = next((p for p in (Path(source), run_dir / source) if (p / "run.json").is_file()), Path(source))
        if not (path / "run.json").is_file():
            raise MlaError(f"no run at `{source}`", f"runs lie under `{run_dir}`; train one with `mla train`")
    run = Run(path)
    if run.state == "running":
        run.refuse_held()
    if run.state != "finished":
        raise MlaError(
            f"`{path}` holds a {'failed' if run.state == 'failed' else 'run that has not finished'}"
            + (" run" if run.state == "failed" else ""),
            f"continue it with `{train_command(run.path, run.info(), '--resume')}`",
        )
    return run

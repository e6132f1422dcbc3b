"""What goes on with a run, as one line for a shell."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def train_command(folder: Path, info: Mapping[str, Any], how: str) -> str:
    """`mla train` for a run's folder. info: `run.json`, or nothing where that is damaged. how: --resume or --force."""
    places = ["--run-dir", str(folder.parent)]
    if info.get("data_dir", "data") != "data":
        places += ["--data-dir", str(info["data_dir"])]
    return shlex.join(["mla", "train", "--recipe", str(folder / "recipe.yaml"), *places, how])


def start_again(folder: Path, info: Mapping[str, Any]) -> str:
    """The hint for a run that was trained here and is damaged beyond repair; see `train_command`."""
    return f"start the run again with `{train_command(folder, info, '--force')}`"

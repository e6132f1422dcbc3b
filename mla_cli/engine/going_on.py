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

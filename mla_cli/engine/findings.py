"""What `mla check` found: one line for each thing it looked at."""

from dataclasses import dataclass

OK, WARNING, PROBLEM = "ok", "warning", "problem"
STATES = (OK, WARNING, PROBLEM)  # in the order in which they are listed: a terminal shows the last lines


@dataclass(frozen=True)
class Finding:
    """part: `installation`, `store`, `run`, `ablation`, `recipe`, `lock` or `folder`. item: what was looked at, a
    file by its path. state: `ok`, `warning` (works, but look at it) or `problem` (broken). mend: what to do, "" for
    nothing."""

    part: str
    item: str
    state: str
    found: str
    mend: str = ""

"""`mla check` as a table. Needs no pandas: it must work where packages are broken."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from mla_cli.engine.findings import PROBLEM, WARNING, Finding
from mla_cli.render import Wide, counted, print_wide

if TYPE_CHECKING:
    import pandas as pd


def check_table(found: list[Finding]) -> Wide:
    """A line for each thing, problems last; below them what to do."""
    rows = [[finding.item, finding.state, finding.found] for finding in found]
    notes = [f"{finding.item}: to mend it: {finding.mend}" for finding in found if finding.mend]
    return Wide("check", ["what", "state", "found"], rows, [*notes, verdict(found)], words=True)


def verdict(found: list[Finding]) -> str:
    """The last line."""
    bad, odd = (sum(finding.state == state for finding in found) for state in (PROBLEM, WARNING))
    if bad:
        return f"{counted(bad, 'problem')}, {counted(odd, 'warning')}"
    return "nothing is broken" + (f"; {counted(odd, 'warning')}" if odd else "")


def is_broken(found: list[Finding]) -> bool:
    return any(finding.state == PROBLEM for finding in found)


def print_check(found: list[Finding], style: str) -> None:
    """What `mla check` shows; csv and json have one row per finding."""
    if style not in ("csv", "json"):
        print_wide(check_table(found), style)
        return
    from mla_cli.render import print_tidy

    print_tidy(check_rows(found), style)


def check_rows(found: list[Finding]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame([asdict(finding) for finding in found], columns=["part", "item", "state", "found", "mend"])

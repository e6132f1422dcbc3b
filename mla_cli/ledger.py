"""The reference ledger: published numbers, to be seen beside ours and never mixed with them.

`reference.csv` holds what could be checked in a public source, as printed there, in percent; every row names its
source. Splits, encoders, budgets and the choice of epochs differ from source to source, so no two sources share a
ranking. The paper's own tables beyond its first figure could not be checked and are not in it.
"""

import csv
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from mla_cli.engine.results import write_csv
from mla_cli.render import Wide, print_lines, say
from mla_cli.tables import print_tables
from mla_cli.wide import about

FILE = Path(__file__).with_name("reference.csv")


@dataclass(frozen=True)
class Entry:
    """One published number. percent: as printed. output: `fused` or a modality. missing_rate: "" for complete data.

    run_by: whose experiment it is. source: where it is printed.
    """

    dataset: str
    method: str
    output: str
    metric: str
    missing_rate: str
    percent: str
    run_by: str
    source: str
    protocol: str
    note: str

    @property
    def rate(self) -> float:
        return float(self.missing_rate or 0)

    @property
    def row(self) -> tuple[str, str, str]:
        """What stands in one line of a table: a method as one source has it."""
        return self.method, self.run_by, self.source


def entries(dataset: str | None = None) -> list[Entry]:
    """All published numbers, or those of a data set, in the file's order."""
    with open(FILE, encoding="utf-8", newline="") as file:
        found = [Entry(**row) for row in csv.DictReader(file)]
    return [entry for entry in found if dataset in (None, entry.dataset)]


def reference_tables(rows: pd.DataFrame) -> list[Wide]:
    """Published numbers for the data set of our tidy rows, in columns equal to ours; none where there are none."""
    found = entries(rows.iloc[0]["dataset"])
    ours = [o for o in dict.fromkeys(rows["output"]) if o != "fused"]
    outputs = [*ours, "fused"]
    whole = [e for e in found if e.rate == 0 and e.output in outputs]
    cells = {(*e.row, e.output): e.percent for e in whole}
    tables = [table("published accuracy in %, complete modalities", whole, outputs, cells, rows)] if whole else []
    drawn = rows["missing_rate"].map(lambda rate: isinstance(rate, int | float) and rate > 0)
    missing = rows[(rows["output"] == "fused") & drawn]
    with_rates = {e.row for e in found if e.rate > 0}
    if len(missing) and with_rates:
        some = [e for e in found if e.row in with_rates and e.output == "fused"]
        rates = sorted({0.0, *missing["missing_rate"].astype(float), *(e.rate for e in some)})
        cells = {(*e.row, f"{e.rate:g}"): e.percent for e in some}
        title = "published fused accuracy in % against missing rate"
        tables.append(table(title, some, [f"{rate:g}" for rate in rates], cells, rows))
    return tables


def table(title: str, chosen: list[Entry], columns: list[str], cells: dict, rows: pd.DataFrame) -> Wide:
    """One line per method and source; nothing is bold, as nothing is ranked."""
    lines = [
        [method, *(cells.get((method, run_by, source, column), "") for column in columns), run_by, source]
        for method, run_by, source in dict.fromkeys(entry.row for entry in chosen)
    ]
    protocols = "; ".join(dict.fromkeys(entry.protocol for entry in chosen))
    notes = [
        "as their sources print them: other splits, encoders, budgets and choices of epochs than ours, and than each "
        "other's; not to be averaged, ranked or compared with ours",
        f"their protocol: {protocols}; ours: {about(rows)}",
    ]
    for entry in chosen:
        if entry.note and entry.rate == 0 and not entry.missing_rate:
            notes.append(f"{entry.method}, {entry.output}, {entry.percent}: {entry.note}")
    return Wide(title, ["method", *columns, "run by", "source"], lines, notes)


def print_reference(rows: pd.DataFrame, style: str, folder: Path | None = None) -> None:
    """The published numbers for the data set of our tidy rows, after our tables; one line where there are none.

    folder: of an ablation, which gets them as `reference.csv`.
    """
    dataset = rows.iloc[0]["dataset"]
    found = entries(dataset)
    if not found:
        names = ", ".join(sorted({entry.dataset for entry in entries()}))
        say(f"no published numbers for {dataset} in the reference ledger; it has {names}")
        return
    if folder is not None:
        write_csv(pd.DataFrame([asdict(entry) for entry in found]), folder / FILE.name)
    if style in ("csv", "json"):
        where = f"they are in {folder / FILE.name}" if folder else "see them with --format table, markdown or latex"
        say(f"published numbers are no rows of ours: {where}")
        return
    print_lines([""])
    print_tables(reference_tables(rows), rows, style)

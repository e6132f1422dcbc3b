"""The manifest: one row per sample, and everything that was wrong with the raw data.

A data set's `scan` returns a `Manifest`; `mla prepare` turns it into a feature store. A cell of column `ref.<modality>`
says where the raw modality lies (see `data/references.py` for the forms) or is None where the sample does not have it.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

PROBLEM_KINDS = (
    "missing",
    "empty",
    "lfs_pointer",
    "undecodable",
    "too_short",
    "silent",
    "no_video_stream",
    "no_audio_stream",
    "unknown_label",
    "duplicate_id",
    "text_undecodable",
    "outside_root",
    "timeout",
    "not_finite",
    "bad_row",
)
MODALITY_KINDS = ("image", "audio", "video", "text", "text_file", "vector")


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one sample: `kind` is one of PROBLEM_KINDS, `file` is relative to the raw root."""

    kind: str
    id: str
    modality: str
    file: str
    reason: str


@dataclass
class Manifest:
    """What a scan of raw data found.

    rows: columns `id` (unique text), `label` (text, one of `classes`), `group` ("" where there is none), `split`
        (official split or ""), `ref.<modality>` (text or None) and any further columns; sorted by `id`.
    modalities: name -> kind (MODALITY_KINDS), in the default order of training.
    allow_outside: references may lead out of the raw root.
    """

    rows: pd.DataFrame
    modalities: dict[str, str]
    classes: tuple[str, ...]
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    allow_outside: bool = False

    def __post_init__(self):
        rows = self.rows
        for column in ("group", "split"):
            if column not in rows:
                rows = rows.assign(**{column: ""})
        self.rows = rows.sort_values("id", kind="stable").reset_index(drop=True)

    def fingerprint(self) -> str:
        """Hash of the rows, kinds and classes; equal for equal content whatever the order of the scan."""
        digest = hashlib.sha256(repr((sorted(self.modalities.items()), self.classes)).encode())
        columns = ["id", "label", "group", "split", *(f"ref.{m}" for m in sorted(self.modalities))]
        for column in columns:
            values = self.rows[column].where(self.rows[column].notna(), "\x00")
            digest.update(f"{column}\x1e".encode() + "\x1f".join(values.astype(str)).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def problems_table(problems: list[Problem]) -> pd.DataFrame:
    """`problems.csv`: one row per problem, in a stable order."""
    table = pd.DataFrame([vars(p) for p in problems], columns=["kind", "id", "modality", "file", "reason"])
    return table.sort_values(["kind", "id", "modality", "file"], kind="stable").reset_index(drop=True)


def counts_of_bad(problems: list[Problem], manifest: Manifest) -> tuple[int, int]:
    """How many samples cannot be used, of how many: those in the table, and those that did not come so far."""
    named = {p.id for p in problems if p.id and p.kind != "duplicate_id"}
    apart = sum(not p.id or p.kind == "duplicate_id" for p in problems)  # lines without an id, second ones of an id
    return len(named) + apart, len(named.union(manifest.rows["id"])) + apart


def relative_ref(root: Path, path: Path) -> str:
    """A path below the raw root, as it is written into a manifest."""
    return path.relative_to(root).as_posix()

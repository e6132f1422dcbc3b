"""The reference ledger: every number has its source, and none meets a number of ours."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_tables import of_setting, rows

from mla_cli.ledger import FILE, entries, print_reference, reference_tables

# copied by hand from the sources' summary: data set, method, who ran it, missing rate, percent
SPOT_CHECKS = [
    ("cremad", "MLA", "the paper, as printed by G2D", 0.0, "79.70"),
    ("cremad", "MLA", "AUG", 0.0, "79.43"),
    ("cremad", "MLA", "AUG", 0.2, "69.35"),
    ("cremad", "MLA", "AUG", 0.5, "57.53"),
    ("cremad", "AUG", "AUG", 0.0, "85.15"),
    ("cremad", "AUG", "AUG", 0.2, "75.40"),
    ("cremad", "AUG", "AUG", 0.5, "60.08"),
    ("cremad", "MLA", "PDMP", 0.0, "73.21"),
    ("cremad", "MLA", "BalanceBenchmark", 0.0, "72.30"),
    ("cremad", "baseline", "BalanceBenchmark", 0.0, "65.50"),
    ("kinetics_sounds", "MLA", "BalanceBenchmark", 0.0, "69.05"),
    ("kinetics_sounds", "MMPareto", "BalanceBenchmark", 0.0, "74.55"),
    ("food101", "AMCo", "BalanceBenchmark", 0.0, "92.73"),
    ("food101", "ReconBoost", "BalanceBenchmark", 0.0, "92.47"),
]
BALANCE = {  # baseline, OGM, MLA, MMPareto, ReconBoost, LFM, AMCo
    "kinetics_sounds": ["65.63", "67.04", "69.05", "74.55", "68.38", "66.37", "70.54"],
    "cremad": ["65.50", "67.76", "72.30", "79.97", "74.01", "70.02", "73.30"],
    "food101": ["91.65", "91.81", "93.14", "92.82", "92.47", "92.58", "92.73"],
}
ARXIV = {
    "the paper, as printed by G2D": "arXiv 2506.21514",
    "AUG": "arXiv 2502.20120",
    "PDMP": "arXiv 2604.05773",
    "BalanceBenchmark": "arXiv 2502.10816",
    "Modal-Imbalance-PMR": "Modal-Imbalance-PMR, issue 1",
}


def ours(dataset: str = "cremad", rates: tuple[float, ...] = (0.0,)) -> pd.DataFrame:
    """Tidy rows of a made-up run of ours."""
    made: list[dict[str, Any]] = []
    for output in ("audio", "visual"):
        made += of_setting("mla", {0: 0.5}, output=output, dataset=dataset, protocol="actor")
    for rate in rates:
        made += of_setting("mla", {0: 0.6}, dataset=dataset, protocol="actor", missing_rate=rate)
    return rows(*made)


def test_every_number_and_nothing_else() -> None:
    found = {(e.dataset, e.method, e.run_by, e.rate): e.percent for e in entries() if e.output == "fused"}
    assert {key[:4]: found[key[:4]] for key in SPOT_CHECKS} == {key[:4]: key[4] for key in SPOT_CHECKS}
    for dataset, numbers in BALANCE.items():
        assert [e.percent for e in entries(dataset) if e.run_by == "BalanceBenchmark"] == numbers
    assert len(entries()) == 8 + 21 + 1
    (alone,) = [e for e in entries() if e.output != "fused"]
    assert (alone.dataset, alone.output, alone.percent) == ("cremad", "visual", "74")
    assert "250 epochs" in alone.note


def test_every_row_has_its_source() -> None:
    for entry in entries():
        assert ARXIV[entry.run_by] == entry.source
        assert entry.metric == "accuracy" and entry.protocol
        assert 0 < float(entry.percent) < 100 and 0 <= entry.rate < 1


def test_columns_are_ours_and_nothing_is_ranked() -> None:
    (table,) = reference_tables(ours())
    assert table.columns == ["method", "audio", "visual", "fused", "run by", "source"]
    assert table.rows[0] == ["MLA", "", "", "79.70", "the paper, as printed by G2D", "arXiv 2506.21514"]
    assert table.rows[-1] == ["unimodal", "", "74", "", "Modal-Imbalance-PMR", "Modal-Imbalance-PMR, issue 1"]
    assert len(table.rows) == 12 and not table.best and not table.second
    assert table.notes[0].endswith("not to be averaged, ranked or compared with ours")
    assert "split by clip, every actor on both sides; ours: cremad, protocol actor, test n = 600" in table.notes[1]
    assert table.notes[2].startswith("unimodal, visual, 74: about, after some 250 epochs")


def test_missing_rates_have_a_table_where_ours_have_one() -> None:
    whole, missing = reference_tables(ours(rates=(0.0, 0.2, 0.4)))
    assert len(whole.rows) == 12
    assert missing.columns == ["method", "0", "0.2", "0.4", "0.5", "run by", "source"]
    assert missing.rows == [
        ["MLA", "79.43", "69.35", "", "57.53", "AUG", "arXiv 2502.20120"],
        ["AUG", "85.15", "75.40", "", "60.08", "AUG", "arXiv 2502.20120"],
    ]
    assert len(reference_tables(ours("food101", rates=(0.0, 0.2)))) == 1


def test_a_data_set_without_entries_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_reference(ours("emoji"), "table", tmp_path)
    captured = capsys.readouterr()
    wanted = "no published numbers for emoji in the reference ledger; it has cremad, food101, kinetics_sounds\n"
    assert (captured.out, captured.err) == ("", wanted)
    assert list(tmp_path.iterdir()) == []


def test_tidy_formats_keep_them_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_reference(ours(), "csv", tmp_path)
    captured = capsys.readouterr()
    assert captured.out == "" and "published numbers are no rows of ours: they are in " in captured.err
    written = pd.read_csv(tmp_path / "reference.csv", dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(
        written, pd.read_csv(FILE, dtype=str, keep_default_na=False).query("dataset == 'cremad'"), check_like=False
    )
    print_reference(ours(), "json")
    assert "--format table, markdown or latex" in capsys.readouterr().err
    print_reference(ours(), "markdown")
    assert "| MLA |  |  | 79.70 | the paper, as printed by G2D | arXiv 2506.21514 |" in capsys.readouterr().out

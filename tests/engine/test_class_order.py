"""The order of an imported checkpoint's classes: how it is given, and when another one is suggested."""

from pathlib import Path

import numpy as np
import pytest

from mla_cli.engine.class_order import class_order, order_note, other_order
from mla_cli.errors import MlaError

OWN = ["blowing nose", "tickling", "strumming guitar"]  # as Kinetics-Sounds' list of 32 ends


def test_it_is_sorted_given_or_read_from_a_file(tmp_path: Path) -> None:
    assert class_order(None, OWN) == ["blowing nose", "strumming guitar", "tickling"]
    given = ["tickling", "blowing nose", "strumming guitar"]
    assert class_order("tickling, blowing nose,strumming guitar", OWN) == given
    (tmp_path / "order.txt").write_text("\ufeff" + "\n".join(given) + "\n\n", "utf-8")
    assert class_order(str(tmp_path / "order.txt"), OWN) == given
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    for wrong, named in (
        ("tickling", "blowing nose"),
        ("tickling,laughing,blowing nose", "laughing"),
        ("tickling,tickling,blowing nose,strumming guitar", "tickling"),
        (str(tmp_path / "bad.txt"), "bad.txt"),
    ):
        with pytest.raises(MlaError) as caught:
            class_order(wrong, OWN)
        assert named in caught.value.message and caught.value.hint


def test_the_note_names_few_classes() -> None:
    assert "read as tickling, laughing (as `--classes` says)" in order_note(["tickling", "laughing"], given=True)
    assert "read as c0, c1, c2, ..., c30 (sorted" in order_note([f"c{i}" for i in range(31)], given=False)


def test_another_order_is_suggested_where_it_fits_much_better() -> None:
    """A model that is right in 80 % of the cases, its head's rows in the order NEU, HAP, ..., read as sorted."""
    own, real = ["ANG", "DIS", "FEA", "HAP", "NEU", "SAD"], ["NEU", "HAP", "SAD", "FEA", "DIS", "ANG"]
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 20)
    said = np.where(rng.random(120) < 0.8, labels, rng.integers(0, 6, 120))  # class numbers of ours
    head = np.eye(6)[[real.index(own[c]) for c in said]]  # what the checkpoint's head says, by row
    wrong = head[:, [sorted(own).index(name) for name in own]]
    text = other_order(wrong, labels, own, sorted(own))
    assert text is not None
    assert "`--classes 'NEU,HAP,SAD,FEA,DIS,ANG'`" in text
    right = head[:, [real.index(name) for name in own]]
    assert (right.argmax(1) == labels).mean() == pytest.approx((said == labels).mean())
    assert f"it would be {(said == labels).mean():.1%}" in text
    assert other_order(right, labels, own, real) is None
    right[3] = np.nan  # a sample that has nothing
    assert other_order(right, labels, own, real) is None

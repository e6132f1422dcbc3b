import errno
import io
import os
import zipfile
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mla_cli import registry
from mla_cli.data import store as stores
from mla_cli.data.manifest import Manifest, Problem
from mla_cli.data.store import Store
from mla_cli.datasets import emoji
from mla_cli.engine import assemble, shards
from mla_cli.engine import prepare as preparing
from mla_cli.engine.events import Note, Progress
from mla_cli.engine.executor import Local
from mla_cli.engine.latest import latest
from mla_cli.engine.prepare import Prepared, prepare, raw_root
from mla_cli.errors import MlaError
from mla_cli.recipe import validate
from mla_cli.schema import Recipe
from mla_cli.specs import ImageSpec, TextSpec, VectorSpec, same_spec

COUNT = 150  # samples of the small raw folder: three shards of 64 rows for each modality


def recipe_for(size: int = 4, **dataset: Any) -> Recipe:
    features = {"visual": {"kind": "image", "size": size}, "text": {"kind": "text", "length": 8}}
    return validate({"dataset": {"name": "emoji"} | dataset, "features": features}, "test")


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "png")
        return file.getvalue()


def make_raw(root: Path, bad: tuple[int, ...] = (), missing: tuple[int, ...] = ()) -> Path:
    """A raw folder laid out as the built-in emoji: some pictures are not pictures, some are not there."""
    root.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(
        {
            "id": [f"{i:03d}" for i in range(COUNT)],
            "visual": [f"visual/{i:03d}.png" for i in range(COUNT)],
            "text": [f"name of {i}" for i in range(COUNT)],
            "keywords": "",
            "label": [emoji.CLASSES[i % 3] for i in range(COUNT)],
            "subgroup": "",
            "split": [("train", "val", "test")[i // 3 % 3] for i in range(COUNT)],
            "family": [str(i) for i in range(COUNT)],
        }
    )
    table.to_csv(root / "metadata.csv", index=False)
    with zipfile.ZipFile(root / "visual.zip", "w") as archive:
        for i in range(COUNT):
            if i not in missing:
                archive.writestr(f"visual/{i:03d}.png", b"no picture" if i in bad else picture(i))
    return root


def outcome(steps: Generator[Any, None, Prepared]) -> tuple[Prepared, list[Any]]:
    events = []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as stop:
            return stop.value, events


def notes(events: list[Any]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note)]


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def stamps(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*")}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_raw(tmp_path / "raw_emoji")


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "SHARD_BYTES", 1)
    monkeypatch.delenv("MLA_RAW", raising=False)


def build(raw: Path, data_dir: Path, recipe: Recipe | None = None, **how: Any) -> tuple[Prepared, list[Any]]:
    return outcome(
        prepare("emoji", data_dir, recipe or recipe_for(), raw, executor=Local(how.pop("workers", 1)), **how)
    )


# ---------------------------------------------------------------- what is built


def test_the_store_holds_the_raw_data_in_shards(raw: Path, tmp_path: Path) -> None:
    done, events = build(raw, tmp_path / "data")
    assert done.built
    assert done.path == tmp_path / "data" / "emoji"
    assert done.counts == {"samples": COUNT, "visual": COUNT, "text": COUNT}
    assert set(content(done.path)) == {
        "manifest.json",
        "index.parquet",
        "classes.txt",
        *(f"{m}/0000{n}.npy" for m in ("visual", "text") for n in range(3)),
    }
    assert (done.path / "classes.txt").read_text().split() == list(emoji.CLASSES[:3])
    store = Store.open(done.path)
    pictures = store.modality("visual").take(np.arange(COUNT))
    again = Image.open(io.BytesIO(picture(70))).resize((4, 4), Image.Resampling.BICUBIC)
    assert pictures.shape == (COUNT, 3, 4, 4)
    nearest = np.abs(pictures.astype(int) - np.asarray(again, int).transpose(2, 0, 1)).sum((1, 2, 3)).argmin()
    assert store.index["id"][nearest] == "070"
    assert latest(tmp_path / "data") == "emoji"
    progress = [event for event in events if isinstance(event, Progress)]
    assert [p.done for p in progress] == sorted(p.done for p in progress)
    assert (progress[0].done, progress[-1].done, progress[-1].total) == (0, 2 * COUNT, 2 * COUNT)


def test_built_in_sets_need_no_root_and_bring_their_notices(
    emoji_store: Store, digits_store: Store, mfeat_store: Store
) -> None:
    for store in (emoji_store, digits_store, mfeat_store):
        name = store.manifest["dataset"]
        assert raw_root(name, None) == registry.PACKAGE / "demo" / name
        recipe = validate(
            {
                "dataset": {"name": name},
                "features": {m: store.spec(m).model_dump() for m in store.modalities},
            },
            "test",
        )
        done, _ = outcome(prepare(name, store.path.parent, recipe, executor=Local(1)))
        assert not done.built
        assert done.attribution == registry.load("datasets", name).ATTRIBUTION
        assert done.counts == store.manifest["counts"]
    assert "MENARDI" in registry.load("datasets", "digits").ATTRIBUTION


def test_preparing_twice_does_nothing(raw: Path, tmp_path: Path) -> None:
    first, _ = build(raw, tmp_path / "data")
    (tmp_path / "data" / ".last").write_text("other\n")
    before = stamps(first.path)
    second, events = build(raw, tmp_path / "data")
    assert not second.built
    assert second.counts == first.counts
    assert stamps(first.path) == before
    assert not any(isinstance(event, Progress) for event in events)
    assert latest(tmp_path / "data") == "emoji"  # also when there was nothing to do


def test_worker_processes_and_this_one_build_the_same(raw: Path, tmp_path: Path) -> None:
    one, _ = build(raw, tmp_path / "one")
    two, events = build(raw, tmp_path / "two", workers=2)
    assert content(one.path) == content(two.path)
    assert [e.done for e in events if isinstance(e, Progress)][-1] == 2 * COUNT


def test_another_feature_spec_builds_again(raw: Path, tmp_path: Path) -> None:
    first, _ = build(raw, tmp_path / "data")
    fingerprint = Store.open(first.path).fingerprint
    second, events = build(raw, tmp_path / "data", recipe_for(size=5))
    assert second.built
    assert any("building it again" in note for note in notes(events))
    store = Store.open(second.path)
    assert store.modality("visual").shape == (3, 5, 5)
    assert store.fingerprint != fingerprint
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [".last", "emoji"]
    back, _ = build(raw, tmp_path / "data")
    assert Store.open(back.path).fingerprint == fingerprint


def test_other_rows_build_again(raw: Path, tmp_path: Path) -> None:
    first, _ = build(raw, tmp_path / "data")
    fingerprint = Store.open(first.path).fingerprint
    table = pd.read_csv(raw / "metadata.csv", dtype=str, keep_default_na=False)
    table.loc[5, "split"] = "val" if table.loc[5, "split"] == "test" else "test"
    table.to_csv(raw / "metadata.csv", index=False)
    second, _ = build(raw, tmp_path / "data")
    assert second.built
    assert Store.open(second.path).fingerprint != fingerprint


def test_two_stores_of_one_set(raw: Path, tmp_path: Path) -> None:
    build(raw, tmp_path / "data")
    other, _ = build(raw, tmp_path / "data", recipe_for(size=5, store="emoji_5"))
    assert other.path.name == "emoji_5"
    assert Store.open(tmp_path / "data" / "emoji").modality("visual").shape == (3, 4, 4)
    assert latest(tmp_path / "data") == "emoji_5"


def test_force_builds_again_the_same(raw: Path, tmp_path: Path) -> None:
    first, _ = build(raw, tmp_path / "data")
    before, times = content(first.path), stamps(first.path)
    second, events = build(raw, tmp_path / "data", force=True)
    assert second.built
    assert content(second.path) == before
    assert all(stamps(second.path)[name] != time for name, time in times.items())
    assert next(e.done for e in events if isinstance(e, Progress)) == 0


# ---------------------------------------------------------------- interrupted


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch) -> list[shards.ShardTask]:
    """Let `prepare` die before its shard number `count`; returns the list of shards made."""
    made: list[shards.ShardTask] = []
    real = shards.make_shard

    def make(task: shards.ShardTask) -> None:
        if len(made) == count:
            raise KeyboardInterrupt
        made.append(task)
        real(task)

    monkeypatch.setattr(shards, "make_shard", make)
    return made


@pytest.mark.parametrize("count", [0, 1, 4])
def test_an_interrupted_build_goes_on_and_ends_the_same(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    whole, _ = build(raw, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(count, patch)
        with pytest.raises(KeyboardInterrupt):
            build(raw, tmp_path / "data")
    assert not (tmp_path / "data" / "emoji").exists()
    assert latest(tmp_path / "data") is None
    [partial] = (tmp_path / "data").glob(".emoji-*.partial")
    (partial / "visual").mkdir(exist_ok=True)
    (partial / "visual" / ".00000.npy.99999.tmp").write_bytes(b"left by a killed process")
    with monkeypatch.context() as patch:
        made = stop_after(-1, patch)
        done, events = build(raw, tmp_path / "data")
    assert len(made) == 6 - count  # finished shards are not made again
    first = next(e.done for e in events if isinstance(e, Progress))
    assert first == min(count * 64, COUNT) + max(0, count - 3) * 64
    assert content(done.path) == content(whole.path)
    assert not list((tmp_path / "data").glob(".emoji-*"))


def test_an_interrupted_rebuild_leaves_the_old_store(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = build(raw, tmp_path / "data")
    before = content(first.path)
    stop_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        build(raw, tmp_path / "data", recipe_for(size=5))
    assert content(first.path) == before


@pytest.mark.parametrize("step", ["first", "second"])
def test_dying_while_moving_loses_nothing(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    build(raw, tmp_path / "data", recipe_for(size=5))
    real, calls = os.replace, []

    def replace(source: Any, target: Any) -> None:
        if Path(source).is_dir():
            calls.append(source)
            if len(calls) == {"first": 1, "second": 2}[step]:
                raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            build(raw, tmp_path / "data")
    made = stop_after(-1, monkeypatch)
    done, _ = build(raw, tmp_path / "data")
    assert made == []  # all the work had been done
    assert Store.open(done.path).modality("visual").shape == (3, 4, 4)
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [".last", "emoji"]


def until(steps: Generator[Any, None, Prepared], wanted: str) -> None:
    """Go on until something with this text is said or shown."""
    while wanted not in str(next(steps)):
        pass


@pytest.mark.parametrize("force", [False, True])
def test_two_at_once_do_the_work_once(raw: Path, tmp_path: Path, force: bool) -> None:
    first = prepare("emoji", tmp_path / "data", recipe_for(), raw, executor=Local(1))
    until(first, "Progress")
    second = prepare("emoji", tmp_path / "data", recipe_for(), raw, executor=Local(1), force=force)
    until(second, f"another process is building {tmp_path / 'data' / 'emoji'} (process {os.getpid()} on ")
    done, _ = outcome(first)
    assert done.built
    before = stamps(done.path)
    late, _ = outcome(second)
    assert (late.built, late.counts) == (force, done.counts)
    assert (stamps(done.path) == before) != force
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [".last", "emoji"]


def test_who_waits_goes_on_where_the_other_was_killed(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = stop_after(-1, monkeypatch)
    first = prepare("emoji", tmp_path / "data", recipe_for(), raw, executor=Local(1))
    until(first, f"done={64 * 2}")
    second = prepare("emoji", tmp_path / "data", recipe_for(), raw, executor=Local(1))
    until(second, "waiting")
    first.close()
    done, _ = outcome(second)
    assert done.built
    assert len(made) == 6  # no shard twice
    whole, _ = build(raw, tmp_path / "whole")
    assert content(done.path) == content(whole.path)


# ---------------------------------------------------------------- bad samples


def test_bad_samples_are_listed_and_left_out(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw_emoji", bad=(3, 70), missing=(149,))
    done, events = build(raw, tmp_path / "data", max_bad=0.02)
    assert done.counts == {"samples": COUNT - 3, "visual": COUNT - 3, "text": COUNT - 3}
    listed = pd.read_csv(done.path / "problems.csv", dtype=str)
    assert listed["id"].tolist() == ["149", "003", "070"]
    assert listed["kind"].tolist() == ["missing", "undecodable", "undecodable"]
    assert listed["file"].tolist() == [f"visual.zip::visual/{i}.png" for i in ("149", "003", "070")]
    assert sorted(p.id for p in done.problems) == ["003", "070", "149"]
    [warning] = [e for e in events if isinstance(e, Note) and e.warning]
    assert warning.text == "3 of 150 samples cannot be used (1 missing, 2 undecodable)"
    store = Store.open(done.path)
    assert not {"003", "070", "149"} & set(store.index["id"])
    # the others are the rows they would be without the bad ones
    good, _ = build(make_raw(tmp_path / "good"), tmp_path / "good_data")
    whole = Store.open(good.path)
    kept = whole.index["id"].isin(store.index["id"]).to_numpy()
    np.testing.assert_array_equal(
        store.modality("visual").take(store.positions(["visual"])[:, 0]),
        whole.modality("visual").take(whole.positions(["visual"])[kept, 0]),
    )


def test_too_many_bad_samples_are_refused_with_the_work_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = (3, 70)
    raw = make_raw(tmp_path / "raw_emoji", bad=bad)
    with pytest.raises(MlaError) as caught:
        build(raw, tmp_path / "data")
    [problems] = (tmp_path / "data").glob(".emoji-*.partial/problems.csv")
    assert caught.value.message.startswith(
        "2 of 150 samples of `emoji` are bad, more than 1.0% (first: `visual.zip::visual/003.png`: "
    )
    assert str(problems) in caught.value.hint
    assert "--max-bad" in caught.value.hint
    assert not (tmp_path / "data" / "emoji").exists()
    assert len(pd.read_csv(problems)) == 2

    # mended files are read again, and only they
    read: list[str] = []
    real = shards.compute
    monkeypatch.setattr(
        shards, "compute", lambda spec, kind, root, ref, *how: (read.append(ref), real(spec, kind, root, ref, *how))[1]
    )
    make_raw(raw, bad=(70,))
    done, _ = build(raw, tmp_path / "data")
    assert sorted(read) == [f"visual.zip::visual/{i:03d}.png" for i in bad]
    assert done.counts["samples"] == COUNT - 1
    assert len(pd.read_csv(done.path / "problems.csv")) == 1


def test_all_mended_is_as_never_broken(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw_emoji", bad=(3, 70, 71))
    with pytest.raises(MlaError):
        build(raw, tmp_path / "data")
    make_raw(raw)
    done, _ = build(raw, tmp_path / "data")
    whole, _ = build(raw, tmp_path / "whole")
    assert content(done.path) == content(whole.path)
    assert done.problems == []


def test_nothing_but_bad_samples(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw_emoji", bad=tuple(range(COUNT)))
    with pytest.raises(MlaError, match="150 of 150 samples of `emoji` are bad"):
        build(raw, tmp_path / "data", max_bad=1)
    assert not (tmp_path / "data" / "emoji").exists()


@pytest.mark.parametrize("problems", [[], [Problem("undecodable", "x", "visual", "list.csv", "not a table")]])
def test_a_folder_without_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problems: list[Problem]) -> None:
    empty = pd.DataFrame(columns=["id", "label", "ref.visual"])
    module = SimpleNamespace(
        scan=lambda root: Manifest(empty, {"visual": "image"}, (), problems), TREE="a.png", SOURCE="here"
    )
    monkeypatch.setattr(registry, "load", lambda *_: module)
    with pytest.raises(MlaError) as caught:
        outcome(prepare("own", tmp_path / "data", root=tmp_path))
    assert caught.value.message.startswith(f"no usable sample under `{tmp_path}`")
    assert ("not a table" in caught.value.message) == bool(problems)
    assert "a.png" in caught.value.hint


# ---------------------------------------------------------------- refusals


def test_an_unknown_data_set_has_its_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(MlaError) as caught:
        outcome(prepare("cremadd", tmp_path))
    assert caught.value.message == "no dataset named `cremadd`"
    assert caught.value.hint == "did you mean `cremad`?"


def test_where_raw_data_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MlaError) as caught:
        raw_root("cremad", None)
    module = registry.load("datasets", "cremad")
    assert caught.value.message == "no raw data for `cremad`: neither $MLA_RAW/cremad nor raw/cremad"
    assert module.TREE.rstrip() in caught.value.hint
    assert module.SOURCE.strip() in caught.value.hint
    with pytest.raises(MlaError) as caught:
        raw_root("cremad", tmp_path / "nowhere")
    assert caught.value.message == f"`{tmp_path / 'nowhere'}` is not a folder"
    assert module.TREE.rstrip() in caught.value.hint

    (tmp_path / "raw" / "cremad").mkdir(parents=True)
    assert raw_root("cremad", None) == Path("raw/cremad")
    monkeypatch.setenv("MLA_RAW", str(tmp_path / "all"))
    assert raw_root("cremad", None) == Path("raw/cremad")
    (tmp_path / "all" / "cremad").mkdir(parents=True)
    assert raw_root("cremad", None) == tmp_path / "all" / "cremad"
    assert raw_root("cremad", tmp_path / "all") == tmp_path / "all"  # --root is stronger
    assert raw_root("emoji", tmp_path) == tmp_path  # for a built-in set too


def test_a_folder_that_is_another_set(tmp_path: Path) -> None:
    with pytest.raises(MlaError) as caught:
        build(tmp_path, tmp_path / "data")
    assert "metadata.csv" in caught.value.hint


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("inside", [".", "unpacked"])
def test_raw_data_are_never_replaced_by_the_store(tmp_path: Path, force: bool, inside: str) -> None:
    """`mla prepare emoji --root data/emoji`: the default data folder is `data`."""
    raw = make_raw(tmp_path / "data" / "emoji" / inside)
    (tmp_path / "data" / "emoji" / "manifest.json").write_text("{}")
    before = content(tmp_path)
    with pytest.raises(MlaError) as caught:
        build(raw, tmp_path / "data", force=force)
    assert caught.value.message == (
        f"the raw data `{raw}` lie where the prepared data `{tmp_path / 'data' / 'emoji'}` would go"
    )
    assert "--data-dir" in caught.value.hint
    assert content(tmp_path) == before


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_no_store_is_not_overwritten(raw: Path, tmp_path: Path, force: bool) -> None:
    place = tmp_path / "data" / "emoji"
    place.mkdir(parents=True)
    build(raw, tmp_path / "data", force=force)  # an empty one is nobody's
    other = tmp_path / "other" / "emoji"
    other.mkdir(parents=True)
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(MlaError, match="is not a prepared data set, and is not overwritten"):
        build(raw, tmp_path / "other", force=force)
    assert content(tmp_path / "other") == {"emoji/thesis.tex": b"years of work"}


def test_links_that_lead_in_a_circle_are_one_error(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(tmp_path / "back")
    (tmp_path / "back").symlink_to(tmp_path / "data")
    with pytest.raises(MlaError, match=r"^cannot write `"):
        build(raw, tmp_path / "data")
    with pytest.raises(MlaError, match="is not a folder"):
        build(tmp_path / "back", tmp_path / "other")


def test_stores_of_one_name_that_are_moved_into_place_at_once(tmp_path: Path) -> None:
    """Each process moves a whole one, whoever else does the same meanwhile."""

    def move(number: int) -> None:
        for turn in range(20):
            partial = tmp_path / f".one-{number}-{turn}.partial"
            for name in ("visual/0.npy", "manifest.json"):
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                (partial / name).write_text(f"{number} {turn}")
            assemble.move_into_place(partial, tmp_path / "one")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(move, range(4)))
    assert len(set(content(tmp_path / "one").values())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_place_that_is_held_for_ever_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(source: Path, target: Path) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    (tmp_path / "partial").mkdir()
    monkeypatch.setattr(assemble.os, "replace", busy)
    with pytest.raises(MlaError, match=r"cannot write `.*one`: Directory not empty"):
        assemble.move_into_place(tmp_path / "partial", tmp_path / "one")


def test_a_place_that_cannot_be_written(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(MlaError) as caught:
        build(raw, tmp_path / "data")
    assert caught.value.message.startswith("cannot write `")
    assert "--data-dir" in caught.value.hint


def test_a_full_disk_keeps_what_was_made(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, []

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 9:
            raise OSError(28, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(MlaError) as caught:
            build(raw, tmp_path / "data")
    assert caught.value.hint == "free some space and run the same command again; what was finished is kept"
    made = stop_after(-1, monkeypatch)
    done, _ = build(raw, tmp_path / "data")
    assert 0 < len(made) < 6
    whole, _ = build(raw, tmp_path / "whole")
    assert content(done.path) == content(whole.path)


def test_features_that_do_not_fit(raw: Path, tmp_path: Path) -> None:
    for features, message in (
        ({"visual": {"kind": "fbank"}}, "`features.visual.kind`: `fbank` does not fit image data"),
        ({"visaul": {"kind": "image"}}, "`features.visaul`: the data have no modality `visaul`"),
    ):
        with pytest.raises(MlaError) as caught:
            build(raw, tmp_path / "data", validate({"features": features}, "test"))
        assert caught.value.message == message
        assert caught.value.hint
        assert not (tmp_path / "data").exists()


def test_same_spec_leaves_open_what_the_data_decide() -> None:
    assert same_spec(VectorSpec(), VectorSpec(width=6))
    assert not same_spec(VectorSpec(width=5), VectorSpec(width=6))
    assert same_spec(ImageSpec(size=8), ImageSpec(size=8))
    assert not same_spec(ImageSpec(size=8), ImageSpec(size=9))
    assert not same_spec(ImageSpec(), TextSpec())


def test_widths_come_from_the_first_readable_vector(tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", np.ones((4, 5), np.float32))
    (tmp_path / "bad.npy").write_bytes(b"x")
    rows = pd.DataFrame({"id": ["a", "b"], "label": "x", "ref.v": ["bad.npy::0", "good.npy::1"]})
    manifest = Manifest(rows, {"v": "vector"}, ("x",))
    specs = preparing.resolved(preparing.feature_specs(manifest, None), manifest, tmp_path)
    assert specs["v"] == VectorSpec(width=5)


def test_the_fingerprint_is_of_the_content_not_of_the_versions(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = build(raw, tmp_path / "one")
    monkeypatch.setattr(assemble, "versions", lambda *_: {"python": "4.0"})
    two, _ = build(raw, tmp_path / "two")
    first, second = Store.open(one.path), Store.open(two.path)
    assert first.manifest["versions"] != second.manifest["versions"]
    assert first.fingerprint == second.fingerprint
    make_raw(tmp_path / "other")
    with zipfile.ZipFile(tmp_path / "other" / "visual.zip", "w") as archive:
        for i in range(COUNT):
            archive.writestr(f"visual/{i:03d}.png", picture(i + (i == 77)))
    three, _ = build(tmp_path / "other", tmp_path / "three")
    assert Store.open(three.path).fingerprint != first.fingerprint  # one picture differs

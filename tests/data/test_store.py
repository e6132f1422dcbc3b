import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mla_cli.data import store as stores
from mla_cli.data.mapped import PAGE, MappedShard
from mla_cli.data.modality_store import ModalityStore
from mla_cli.data.store import Store, moments, rows_per_shard
from mla_cli.errors import MlaError
from mla_cli.specs import VectorSpec

rng = np.random.default_rng(0)


def make_modality(folder: Path, rows: np.ndarray, shard_rows: int, kind: str = "vector") -> ModalityStore:
    """Write rows as shards."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(rows), shard_rows)):
        np.save(folder / f"{number:05d}.npy", rows[start : start + shard_rows])
    return ModalityStore(folder, kind, VectorSpec(), rows.shape[1:], rows.dtype, len(rows), shard_rows)


# ---------------------------------------------------------------- shards


def test_neighbours_in_one_shard_are_viewed_not_copied(tmp_path: Path) -> None:
    rows = rng.normal(size=(10, 2, 3)).astype(np.float32)
    store = make_modality(tmp_path / "m", rows, 4)
    for wanted, viewed in (([4, 5, 6, 7], True), ([9], True), ([3, 4], False), ([1, 0], False), ([1, 3], False)):
        found = store.view(np.array(wanted))
        np.testing.assert_array_equal(found, rows[wanted])
        assert np.shares_memory(found, store.shards[wanted[0] // 4]) == viewed
        assert found.flags.writeable != viewed
    assert store.view(np.array([], np.int64)).shape == (0, 2, 3)


def test_hints_to_the_kernel_name_the_rows_and_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rng.normal(size=(300, 700)).astype(np.float32)  # 2,800 bytes each: most pages hold two
    store = make_modality(tmp_path / "m", rows, 128)
    told: list[tuple[str, int, int]] = []
    advise = MappedShard.advise

    def noting(self: MappedShard, option: str, start: int, length: int) -> None:
        told.append((option, start, start + length))
        advise(self, option, start, length)

    monkeypatch.setattr(MappedShard, "advise", noting)
    store.will_need(np.array([3, 4, 5, 127, 128, 299]))
    wanted = [(3, 6), (127, 128), (0, 1), (43, 44)]  # first and last + 1 in their shards
    assert [option for option, _, _ in told] == ["MADV_WILLNEED"] * 4
    for (first, last), (_, start, end) in zip(wanted, told, strict=True):
        assert start % PAGE == 0
        assert 0 <= 128 + first * 2800 - start < PAGE  # a header of 128 bytes
        assert end == 128 + last * 2800
    before = store.view(np.arange(5))
    store.let_go()
    assert [option for option, _, _ in told[4:]] == ["MADV_DONTNEED"] * 3
    np.testing.assert_array_equal(before, rows[:5])
    np.testing.assert_array_equal(store.take(np.arange(300)), rows)


@pytest.mark.parametrize(
    ("shape", "dtype", "rows"),
    [
        ((3, 32, 32), np.uint8, 1024),
        ((3, 224, 224), np.uint8, 64),
        ((1, 1024, 128), np.float32, 64),
        ((1,), "f4", 4096),
    ],
)
def test_shards_hold_a_power_of_two_of_rows(shape: tuple[int, ...], dtype: object, rows: int) -> None:
    assert rows_per_shard(shape, np.dtype(dtype)) == rows


def test_many_samples_make_larger_shards_not_thousands_of_files() -> None:
    assert rows_per_shard((3, 224, 224), np.dtype(np.uint8), 90_000) == 256
    assert rows_per_shard((3, 3, 224, 224), np.dtype(np.uint8), 1_000_000) == 128  # 58 MB
    assert rows_per_shard((384,), np.dtype(np.int32), 300) == 2048


def test_shards_stay_near_their_size() -> None:
    for width in range(1, 200_000, 997):
        rows = rows_per_shard((width,), np.dtype(np.float32))
        assert rows & (rows - 1) == 0
        assert 64 <= rows <= 4096
        if 64 < rows < 4096:
            assert stores.SHARD_BYTES / 2 < rows * width * 4 <= stores.SHARD_BYTES


def test_a_shard_that_is_an_archive_of_arrays_is_refused(tmp_path: Path) -> None:
    """NumPy's own reading goes by the content, not by the name."""
    store = make_modality(tmp_path, np.zeros((4, 2), np.float32), 4)
    with (tmp_path / "00000.npy").open("wb") as file:
        np.savez(file, rows=np.zeros((4, 2), np.float32))
    with pytest.raises(MlaError, match="cannot read"):
        store.shards  # noqa: B018


@pytest.mark.parametrize("shard_rows", [1, 3, 8, 10, 64])
def test_take_is_indexing_of_all_rows(tmp_path: Path, shard_rows: int) -> None:
    rows = rng.normal(size=(10, 2, 3)).astype(np.float32)
    modality = make_modality(tmp_path, rows, shard_rows)
    for chosen in ([3], [9, 0, 9, 4], list(range(10)), list(range(9, -1, -1)), []):
        taken = modality.take(np.array(chosen, np.int64))
        np.testing.assert_array_equal(taken, rows[chosen])
        assert taken.dtype == rows.dtype
        assert taken.flags.writeable  # a copy: nothing can change the shard
    np.testing.assert_array_equal(np.concatenate(list(modality.blocks(np.arange(10)[::-1]))), rows[::-1])


def test_a_modality_without_rows(tmp_path: Path) -> None:
    modality = ModalityStore(tmp_path / "none", "vector", VectorSpec(), (3,), np.dtype(np.float32), 0, 64)
    assert modality.take(np.empty(0, np.int64)).shape == (0, 3)
    assert list(modality.blocks(np.empty(0, np.int64))) == []


def test_shards_are_memory_maps(tmp_path: Path) -> None:
    modality = make_modality(tmp_path, rng.normal(size=(8, 4)), 4)
    for shard in modality.shards:
        assert isinstance(shard.base, np.memmap)
        assert type(shard) is np.ndarray
        with pytest.raises(ValueError, match="read-only"):
            shard[0] = 0


class Bomb:
    """Something that acts when it is unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_pickled_is_loaded(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(Bomb(mark)))  # noqa: S301  it does act
    mark.rmdir()
    modality = make_modality(tmp_path / "m", np.zeros((4, 2), np.float32), 4)
    target = modality.folder / "00000.npy"
    np.save(target, np.array([Bomb(mark)] * 4, dtype=object), allow_pickle=True)
    with pytest.raises(MlaError, match="cannot read"):
        modality.take(np.arange(2))
    target.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(MlaError, match="cannot read"):
        modality.take(np.arange(2))
    assert not mark.exists()


@pytest.mark.parametrize("damage", ["shape", "rows", "dtype", "order of bytes", "missing", "empty", "cut"])
def test_a_shard_that_is_not_what_the_manifest_says(tmp_path: Path, damage: str) -> None:
    rows = np.ones((6, 2), np.float32)
    modality = make_modality(tmp_path, rows, 4)
    last = tmp_path / "00001.npy"
    match damage:
        case "shape":
            np.save(last, np.ones((2, 3), np.float32))
        case "rows":
            np.save(last, np.ones((4, 2), np.float32))
        case "dtype":
            np.save(last, np.ones((2, 2), np.float64))
        case "order of bytes":
            np.save(last, np.ones((2, 2), ">f4"))
        case "missing":
            last.unlink()
        case "empty":
            last.write_bytes(b"")
        case "cut":
            last.write_bytes(last.read_bytes()[:-4])
    with pytest.raises(MlaError) as caught:
        modality.take(np.arange(2))
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint == "prepare the data set again with --force"


# ---------------------------------------------------------------- moments and normalisation


@pytest.mark.parametrize(
    ("kind", "shape", "channel_axis"), [("image", (3, 4, 5), 0), ("image", (1, 4, 5), 0), ("video", (6, 3, 4, 5), 1)]
)
def test_moments_of_pictures_are_exact_and_per_channel(kind: str, shape: tuple[int, ...], channel_axis: int) -> None:
    array = rng.integers(0, 256, shape).astype(np.uint8)
    total, squares, count = moments(kind, array, 1)
    channels = np.moveaxis(array.astype(np.int64), channel_axis, 0).reshape(shape[channel_axis], -1)
    assert total == channels.sum(1).tolist()
    assert squares == (channels**2).sum(1).tolist()
    assert count == channels.shape[1]


def test_moments_of_sound_leave_the_padding_out() -> None:
    array = rng.normal(size=(1, 6, 4)).astype(np.float32)
    array[:, 4:] = 0
    total, squares, count = moments("fbank", array, 4)
    real = array[:, :4].astype(np.float64)
    assert count == 16
    assert total == pytest.approx([real.sum()], rel=1e-12)
    assert squares == pytest.approx([np.square(real).sum()], rel=1e-12)
    assert moments("log_stft", array, 4)[2] == 24  # tiled, not padded
    assert moments("text", np.arange(5, dtype=np.int32), 5) == ([0.0], [0.0], 0)


def test_moments_of_half_precision_do_not_overflow() -> None:
    total, squares, _ = moments("fbank", np.full((1, 4, 4), 300, np.float16), 4)
    assert total == [4800.0]
    assert squares == [1_440_000.0]


def make_store(folder: Path, kind: str, rows: np.ndarray, valid: list[int] | None = None, absent: int = 0) -> Store:
    """A store of one modality `m`; the first `absent` samples do not have it."""
    spec = {
        "image": {"kind": "image", "size": rows.shape[-1]},
        "video": {"kind": "video", "size": rows.shape[-1], "frames": rows.shape[1]},
        "fbank": {"kind": "fbank", "mels": 4},
        "vector": {"kind": "vector"},
        "text": {"kind": "text"},
    }[kind]
    make_modality(folder / "m", rows, 4, kind)
    valid = valid or [rows.shape[2] if kind == "fbank" else 1] * len(rows)
    found = [moments(kind, row, v) for row, v in zip(rows, valid, strict=True)]
    nothing = ([0.0], [0.0], 0)
    filled = [nothing] * absent + found
    index = pd.DataFrame(
        {
            "id": [f"{i:03d}" for i in range(absent + len(rows))],
            "label": "a",
            "row.m": [-1] * absent + list(range(len(rows))),
            "sum.m": [f[0] for f in filled],
            "sum_squares.m": [f[1] for f in filled],
            "count.m": [f[2] for f in filled],
        }
    )
    index.to_parquet(folder / "index.parquet")
    entry = {
        "spec": spec,
        "shape": list(rows.shape[1:]),
        "dtype": str(rows.dtype),
        "rows": len(rows),
        "rows_per_shard": 4,
    }
    manifest = {"format": stores.FORMAT, "dataset": "own", "classes": ["a"], "modalities": {"m": entry}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Store.open(folder)


@pytest.mark.parametrize("absent", [0, 3])
def test_normalisation_of_images_is_that_of_all_pixels(tmp_path: Path, absent: int) -> None:
    rows = rng.integers(0, 256, (10, 3, 5, 5)).astype(np.uint8)
    store = make_store(tmp_path, "image", rows, absent=absent)
    train = np.array([8, 1, 5, 7])
    mean, sd = store.normalisation("m", train + absent)
    pixels = rows[train].astype(np.float64).transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(mean, pixels.mean(1)[:, None, None], rtol=1e-12)
    np.testing.assert_allclose(sd, pixels.std(1)[:, None, None], rtol=1e-12)
    # samples without the modality change nothing
    with_absent = store.normalisation("m", np.concatenate([np.arange(absent), train + absent]))
    np.testing.assert_array_equal(with_absent, (mean, sd))


def test_normalisation_of_video_and_sound(tmp_path: Path) -> None:
    clips = rng.integers(0, 256, (6, 2, 3, 4, 4)).astype(np.uint8)
    mean, sd = make_store(tmp_path / "v", "video", clips).normalisation("m", np.arange(6))
    channels = clips.astype(np.float64).transpose(2, 0, 1, 3, 4).reshape(3, -1)
    np.testing.assert_allclose(mean.ravel(), channels.mean(1), rtol=1e-12)
    np.testing.assert_allclose(sd.ravel(), channels.std(1), rtol=1e-12)
    assert mean.shape == (3, 1, 1)

    sound = rng.normal(-5, 3, (6, 1, 8, 4)).astype(np.float32)
    valid = [3, 8, 1, 5, 8, 2]
    mean, sd = make_store(tmp_path / "a", "fbank", sound, valid).normalisation("m", np.arange(6))
    real = np.concatenate([row[:, :v].ravel() for row, v in zip(sound, valid, strict=True)]).astype(np.float64)
    np.testing.assert_allclose([mean[0], sd[0]], [real.mean(), real.std()], rtol=1e-10)


@pytest.mark.parametrize("absent", [0, 2])
def test_normalisation_of_vectors_is_per_column(tmp_path: Path, absent: int) -> None:
    scale = np.array([1e5, 1.0, 1e-3, 1e-9])  # as unlike as the columns of mfeat's mor, and more
    rows = (rng.normal(size=(11, 4)) * scale + 3 * scale).astype(np.float32)
    store = make_store(tmp_path, "vector", rows, absent=absent)
    train = np.array([10, 0, 3, 4, 9])
    mean, sd = store.normalisation("m", np.concatenate([np.arange(absent), train + absent]))
    np.testing.assert_allclose(mean, rows[train].astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(sd, rows[train].astype(np.float64).std(0), rtol=1e-6)
    normal = (rows[train] - mean) / sd
    np.testing.assert_allclose(normal.std(0), 1, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, -7e8, 1e-20])
def test_constant_columns_become_zero(tmp_path: Path, value: float) -> None:
    rows = rng.normal(size=(9, 2)).astype(np.float32)
    rows[:, 1] = value
    mean, sd = make_store(tmp_path, "vector", rows).normalisation("m", np.arange(9))
    assert sd[1] == 1
    np.testing.assert_allclose((rows[:, 1] - mean[1]) / sd[1], 0, atol=1e-7 * abs(value))


def test_vectors_that_are_not_finite_have_no_normalisation(tmp_path: Path) -> None:
    """`mla prepare` refuses them; a shard may be damaged later. No warning comes before the error."""
    rows = np.zeros((9, 2), np.float32)
    rows[2], rows[5] = np.inf, -np.inf
    with pytest.raises(MlaError, match="hold values that are not finite"):
        make_store(tmp_path, "vector", rows).normalisation("m", np.arange(9))


def test_constant_channels_and_sound(tmp_path: Path) -> None:
    rows = rng.integers(0, 256, (5, 3, 4, 4)).astype(np.uint8)
    rows[:, 1] = 200
    mean, sd = make_store(tmp_path / "i", "image", rows).normalisation("m", np.arange(5))
    assert mean.ravel()[1] == 200
    assert sd.ravel()[1] == 1
    assert (sd.ravel()[[0, 2]] > 10).all()
    flat = np.full((5, 1, 6, 4), -15.94, np.float32)
    _, sd = make_store(tmp_path / "a", "fbank", flat).normalisation("m", np.arange(5))
    assert sd.tolist() == [1]


def test_text_is_not_normalised_and_nothing_has_no_moments(tmp_path: Path) -> None:
    tokens = np.arange(12, dtype=np.int32).reshape(3, 4)
    store = make_store(tmp_path / "t", "text", tokens)
    assert [part.tolist() for part in store.normalisation("m", np.arange(3))] == [[0.0], [1.0]]
    store = make_store(tmp_path / "v", "vector", tokens.astype(np.float32), absent=2)
    assert [part.tolist() for part in store.normalisation("m", np.arange(2))] == [[0.0], [1.0]]


def test_normalisation_does_not_depend_on_the_order_of_samples(tmp_path: Path) -> None:
    sound = rng.normal(size=(40, 1, 8, 4)).astype(np.float32) * 1e3
    store = make_store(tmp_path, "fbank", sound)
    train = rng.permutation(40)[:30]
    one, other = store.normalisation("m", train), store.normalisation("m", rng.permutation(train))
    np.testing.assert_array_equal(one, other)  # to the last bit: sums are in index order


# ---------------------------------------------------------------- the store as a whole


def test_prepared_sets_are_what_they_say(emoji_store: Store, digits_store: Store, mfeat_store: Store) -> None:
    for store, samples, classes in ((emoji_store, 1636, 8), (digits_store, 3070, 10), (mfeat_store, 2000, 10)):
        index = store.index
        assert len(index) == samples
        assert len(store.classes) == classes
        assert index["id"].is_unique
        assert index["id"].is_monotonic_increasing
        assert [store.classes[label] for label in store.labels] == index["label"].tolist()
        positions = store.positions(store.modalities)
        assert positions.shape == (samples, len(store.modalities))
        for column, name in zip(positions.T, store.modalities, strict=True):
            modality = store.modality(name)
            present = column[column >= 0]
            assert len(present) == store.manifest["counts"][name]
            assert sorted(present) == list(range(modality.num_rows))  # each row belongs to one sample, in index order
            assert (np.diff(present) > 0).all()
            taken = modality.take(present[:3])
            assert taken.shape == (3, *modality.shape)
            assert taken.dtype == modality.dtype
            # what stands in the index was computed from these very rows
            at = int(np.flatnonzero(column >= 0)[2])
            found = moments(modality.kind, taken[2], int(index[f"length.{name}"][at]))
            total, squares, count = store.sums(name, np.array([at]))
            assert (total[0].tolist(), squares[0].tolist(), count[0]) == found
            assert index[f"count.{name}"][at] == found[2]
        assert not [name for name in index if name.startswith("sum")]  # lists are objects: 1 kB a sample and more


def test_digits_are_unpaired_and_the_others_paired(emoji_store: Store, digits_store: Store, mfeat_store: Store) -> None:
    assert ((digits_store.positions(digits_store.modalities) >= 0).sum(1) == 1).all()
    for store in (emoji_store, mfeat_store):
        assert (store.positions(store.modalities) >= 0).all()


def test_views_of_mfeat_are_the_shipped_arrays(mfeat_store: Store) -> None:
    from mla_cli.registry import PACKAGE

    for view in mfeat_store.modalities:
        shipped = np.load(PACKAGE / "demo" / "mfeat" / f"{view}.npz")["x"]
        rows = mfeat_store.modality(view).take(np.arange(2000))
        np.testing.assert_array_equal(rows, shipped)  # ids are padded, so they sort as the rows do


def test_stores_that_cannot_be_opened(tmp_path: Path, mfeat_store: Store) -> None:
    with pytest.raises(MlaError) as caught:
        Store.open(tmp_path / "emoji")
    assert caught.value.message == f"no prepared data under `{tmp_path / 'emoji'}`"
    assert caught.value.hint == "run `mla prepare emoji`"
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(mfeat_store.path / "manifest.json", copy)
    store = Store.open(copy)
    with pytest.raises(MlaError, match=r"cannot read `.*index\.parquet`"):
        _ = store.index
    (copy / "index.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(MlaError, match=r"index\.parquet` is damaged: it is not what `mla prepare` wrote"):
        _ = store.index
    del store.manifest["index_sha256"]  # an earlier version wrote none
    with pytest.raises(MlaError, match=r"cannot read `.*index\.parquet`"):
        _ = store.index
    (copy / "manifest.json").write_text(json.dumps({"format": 0, "dataset": "mfeat"}))
    with pytest.raises(MlaError) as caught:
        Store.open(copy)
    assert "store format `0`" in caught.value.message
    assert caught.value.hint == "run `mla prepare mfeat --force`"

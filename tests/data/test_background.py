"""Batches are made in threads: same items, errors as themselves, and the threads end whatever happens."""

import _thread
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import emoji_recipe, frozen_copy, make_session, mfeat_recipe, same_bits

from mla_cli.data.background import WORKERS, ahead, read_ahead
from mla_cli.data.loader import ModalityLoader
from mla_cli.data.modality_store import ModalityStore
from mla_cli.errors import MlaError


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mla-data")]


def square(number: int) -> int:
    return number * number


def squares(count: int, broken: int | None = None) -> Iterator[Callable[[], int]]:
    def damaged() -> int:
        raise MlaError(f"item {broken} is damaged", "mend it")

    for number in range(count):
        yield damaged if number == broken else partial(square, number)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_items_come_in_the_jobs_order_from_threads_that_end(count: int) -> None:
    def job(number: int) -> tuple[int, str]:
        time.sleep(0.01 * (number % 2))  # every other one is late
        return number, threading.current_thread().name

    found = list(ahead(partial(job, number) for number in range(count)))
    assert [number for number, _ in found] == list(range(count))
    assert all(name.startswith("mla-data") for _, name in found)
    assert workers() == []


def test_a_bounded_number_of_items_is_made_ahead() -> None:
    made: list[int] = []
    for number, _ in enumerate(ahead(partial(made.append, n) for n in range(10))):
        deadline = time.monotonic() + 5
        wanted = min(10, number + 1 + WORKERS)
        while len(made) < wanted and time.monotonic() < deadline:
            time.sleep(0.001)
        assert sorted(made) == list(range(wanted))


@pytest.mark.parametrize("broken", [0, 1, 4])
def test_an_error_in_a_thread_is_raised_as_itself_after_the_items_before_it(broken: int) -> None:
    items = ahead(squares(6, broken))
    assert [next(items) for _ in range(broken)] == [n * n for n in range(broken)]
    with pytest.raises(MlaError, match=f"item {broken} is damaged") as caught:
        next(items)
    assert caught.value.hint == "mend it"
    assert workers() == []


def test_the_threads_end_when_the_generator_is_closed_or_its_user_fails() -> None:
    items = ahead(squares(5))
    assert next(items) == 0
    assert len(workers()) == WORKERS
    items.close()  # type: ignore[attr-defined]
    assert workers() == []

    def use() -> None:
        for _ in ahead(squares(5)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    assert workers() == []


def test_an_interrupt_while_waiting_ends_the_threads() -> None:
    def slow() -> None:
        time.sleep(0.2)
        _thread.interrupt_main()
        time.sleep(0.2)

    with pytest.raises(KeyboardInterrupt):
        list(ahead(iter([slow, slow, slow])))
    assert workers() == []


def test_a_thread_computes_on_one_core_and_changes_no_other_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        inside = list(ahead(torch.get_num_threads for _ in range(4)))
        fresh: list[int] = []
        other = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert (inside, torch.get_num_threads(), fresh) == ([1] * 4, 3, [3])
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------- training


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """No modality is small enough for memory, and maps are let go often."""
    monkeypatch.setattr("mla_cli.data.loader.RESIDENT_BYTES", 0)
    monkeypatch.setattr("mla_cli.data.loader.MAPPED_BYTES", 1 << 20)


IMAGES = {"augment": {"visual": {"crop": 0.3, "flip": True, "noise": 0.1}, "text": {"drop_tokens": 0.2}}}


def test_training_with_and_without_the_thread_gives_the_same_bits(
    emoji_store, data_dir: Path, mapped: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    threaded = make_session(emoji_recipe(**IMAGES), data_dir)
    threaded.train_epoch()
    monkeypatch.setattr("mla_cli.data.loader.ahead", lambda jobs: (job() for job in jobs))
    plain = make_session(emoji_recipe(**IMAGES), data_dir)
    plain.train_epoch()
    monkeypatch.setattr("mla_cli.data.loader.RESIDENT_BYTES", 1 << 30)
    resident = make_session(emoji_recipe(**IMAGES), data_dir)
    resident.train_epoch()
    assert plain.split_loader("train").is_mapped
    assert not resident.split_loader("train").is_mapped
    for other in (plain, resident):
        assert same_bits(frozen_copy(threaded.method), frozen_copy(other.method))


def test_small_data_are_trained_without_any_thread(
    mfeat_store, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mla_cli.data.loader.ahead", None)
    make_session(mfeat_recipe(), data_dir).train_epoch()


def test_a_steps_error_ends_the_threads_and_a_damaged_shard_is_named(
    emoji_store, data_dir: Path, mapped: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make_session(emoji_recipe(), data_dir)

    def fail(batch: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(session.method, "step", fail)
        with pytest.raises(ZeroDivisionError):
            session.train_epoch()
        assert workers() == []

    def damaged(self: ModalityStore, rows: np.ndarray) -> np.ndarray:
        raise MlaError("cannot read `00000.npy`", "prepare the data set again with --force")

    monkeypatch.setattr(ModalityStore, "view", damaged)
    with pytest.raises(MlaError, match="cannot read"):
        session.train_epoch()
    assert workers() == []


def test_a_skipped_step_is_counted_when_its_round_comes(emoji_store, data_dir: Path, mapped: None) -> None:
    """A checkpoint may lie between the round that is made and the one that trains."""
    session = make_session(emoji_recipe(dataset={"limit": 33}, train={"batch_size": 32}), data_dir)
    batches = session.train_loader.epoch(1)
    assert list(next(batches).inputs) == ["visual", "text"]
    time.sleep(0.05)  # the last batch, of one image, is made by now: too few for batch normalisation
    assert session.train_loader.skipped == {"visual": 0, "text": 0}
    assert list(next(batches).inputs) == ["text"]
    assert session.train_loader.skipped == {"visual": 1, "text": 0}
    assert list(batches) == []


@pytest.mark.parametrize("shuffle", ["full", "blocks"])
def test_an_epoch_from_the_map_goes_on_where_it_stopped(
    emoji_store, data_dir: Path, mapped: None, shuffle: str
) -> None:
    order = {"shuffle": shuffle, "block_rows": 3, "mixed_blocks": 4, "batch_size": 8}
    session = make_session(emoji_recipe(train=order, **IMAGES), data_dir)
    whole = list(session.train_loader.epoch(2))
    for start in (0, 3, len(whole) - 1, len(whole)):
        rest = list(session.train_loader.epoch(2, start))
        assert [batch.round for batch in rest] == list(range(start, len(whole)))
        for one, other in zip(whole[start:], rest, strict=True):
            assert same_bits(one.inputs, other.inputs)
            assert same_bits(one.labels, other.labels)


# ---------------------------------------------------------------- reading ahead


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 5), max_size=12),
    window=st.integers(1, 6),
    seed=st.integers(0, 5),
)
def test_all_rows_are_announced_before_their_round_each_window_once(sizes: list[int], window: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rounds = [{"a": rng.integers(0, 20, size), "b": rng.integers(0, 20, 2 * size)} for size in sizes]
    told: dict[str, list[np.ndarray]] = {"a": [], "b": []}
    for number, (chosen, soon) in enumerate(read_ahead(iter(rounds), window)):
        for m, positions in soon.items():
            told[m].append(positions)
        assert all((chosen[m] == rounds[number][m]).all() for m in chosen)
        for m, positions in chosen.items():
            assert set(positions) <= {int(row) for part in told[m] for row in part}
        started = number // window + 2  # windows announced, whole or in part
        for m, parts in told.items():
            windows = [np.concatenate([c[m] for c in rounds[i : i + window]]) for i in range(0, len(rounds), window)]
            assert sum(map(len, parts)) <= sum(len(np.unique(w)) for w in windows[:started])
    for m, parts in told.items():
        windows = [np.concatenate([c[m] for c in rounds[i : i + window]]) for i in range(0, len(rounds), window)]
        assert sorted(np.concatenate([np.empty(0, int), *parts])) == sorted(
            np.concatenate([np.empty(0, int), *[np.unique(w) for w in windows]])
        )


def test_the_kernel_is_told_of_the_rows_that_blocks_read(
    emoji_store, data_dir: Path, mapped: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[np.ndarray] = []
    monkeypatch.setattr(ModalityLoader, "will_need", lambda self, positions: told.append(positions))
    order = {"shuffle": "blocks", "block_rows": 2, "mixed_blocks": 4, "batch_size": 8}
    session = make_session(emoji_recipe(train=order), data_dir)
    count = len(session.data.splits["train"])
    assert len(list(session.train_loader.epoch(1))) == -(-count // 8)
    assert sorted(np.concatenate(told)) == sorted([*range(count), *range(count)])  # visual and text
    told.clear()
    full = make_session(emoji_recipe(train={"batch_size": 8}), data_dir)
    list(full.train_loader.epoch(1))
    assert told == []

"""Reading raw samples in worker processes: a file that hangs or crashes its decoder costs itself and nothing else.

Decoders are C code: no exception can interrupt them, and a crash takes the process along. So a worker tells which
sample it is about to read. If that takes longer than the time limit, the worker is killed; the batch is done again
without the sample, which is a `timeout`. A sample whose worker dies twice is `undecodable`.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from mla_cli.data.features import compute
from mla_cli.data.media import BadMedia
from mla_cli.engine.events import Progress
from mla_cli.engine.tasks import ONE_CORE, TRIES, Executor, Folders, Lost, TaskDone, TaskEvent
from mla_cli.specs import FeatureSpec

FILE_TIMEOUT = 120.0  # seconds for one sample; the slowest sound files take about one
UNTRUSTED = ("image", "audio", "video")  # kinds of modalities that decoders in C read
TOLD_ROWS = 64  # of the other kinds only every so many samples are told
TOLD_SECONDS = 0.1  # between two lines of progress
Value = TypeVar("Value")


@dataclass(frozen=True)
class Batch:
    """Samples of one modality for one worker: `refs` are (sample id, reference).

    given_up: row -> (problem kind, reason) of the samples that are not to be read again.
    """

    modality: str
    kind: str
    root: str
    refs: Sequence[tuple[str, str]]
    allow_outside: bool = False
    given_up: dict[int, tuple[str, str]] = field(default_factory=dict)

    def folders(self) -> Folders:
        return Folders(seen=self.root)

    def told(self, rows: Sequence[int]) -> Iterator[tuple[int, int | None]]:
        """(row, what to tell before reading it): the row, or None where nothing has to be told."""
        for i, row in enumerate(rows):
            yield row, row if self.kind in UNTRUSTED or i % TOLD_ROWS == 0 else None

    def read(self, row: int, use: Callable[..., Value], *leading: Any) -> Value:
        """use(*leading, kind, root, reference, allow_outside) for one sample. Raises BadMedia."""
        if row in self.given_up:
            raise BadMedia(*self.given_up[row])
        return use(*leading, self.kind, Path(self.root), self.refs[row][1], self.allow_outside)

    def problem(self, row: int, bad: BadMedia) -> list[str]:
        """The fields of a `manifest.Problem`."""
        sample, ref = self.refs[row]
        return [bad.kind, sample, self.modality, "" if self.kind == "text" else ref, bad.reason]


def run_batches(
    function: str, batches: Sequence[Batch], executor: Executor, limit: float, what: str, done: int, total: int
) -> Generator[Progress, None, list[Any]]:
    """Do all batches in the executor's workers; the value is what `function` returned for each, in order.

    function: `module:name` of a generator that tells rows as `Batch.told` says, and None once all are read.
    done, total: samples done before and in all. limit: seconds for one sample.
    """
    values: list[Any] = [None] * len(batches)
    rows = [0] * len(batches)  # done of each batch
    last = time.monotonic()
    replace = _without_the_culprit(limit)
    for result in executor.run(function, batches, ONE_CORE, limit, replace, lambda batch: batch.modality):
        if isinstance(result, TaskEvent):
            rows[result.index] = len(batches[result.index].refs) if result.event is None else result.event
        elif isinstance(result, TaskDone) and result.error is not None:
            raise result.error
        elif isinstance(result, TaskDone):
            values[result.index] = result.value
            rows[result.index] = len(batches[result.index].refs)
        if time.monotonic() - last >= TOLD_SECONDS:
            last = time.monotonic()
            yield Progress(what, min(total, done + sum(rows)), total)
    yield Progress(what, total, total)
    return values


def _without_the_culprit(limit: float) -> Callable[[Lost], Batch | None]:
    """What to do in place of a batch whose worker was lost."""
    deaths: dict[tuple[int, int | None], int] = {}

    def instead(lost: Lost) -> Batch | None:
        batch, row = lost.task, lost.last
        if row is not None and lost.late:
            found = ("timeout", f"not read within {limit:g} s")
        else:
            count = deaths[lost.index, row] = deaths.get((lost.index, row), 0) + 1
            if count < TRIES:
                return batch  # somebody else may have killed it
            if row is None:
                return None
            found = ("undecodable", f"its decoder crashed ({lost.reason}; out of memory?)")
        if batch.kind not in UNTRUSTED:  # which of the samples since the last one told is not known
            return None
        return replace(batch, given_up={**batch.given_up, row: found})

    return instead


# ---------------------------------------------------------------- in the worker


def check_batch(batch: Batch) -> Generator[int | None, None, list[list[str]]]:
    """The fields of a `Problem` for every sample that cannot be used."""
    from mla_cli.data.features import check

    problems = []
    for row, tell in batch.told(range(len(batch.refs))):
        if tell is not None:
            yield tell
        try:
            batch.read(row, check)
        except BadMedia as bad:
            problems.append(batch.problem(row, bad))
    yield None
    return problems


@dataclass(frozen=True, kw_only=True)
class Trial(Batch):
    """Samples to try: the first one pays for imports, the others are timed."""

    spec: FeatureSpec


def time_batch(trial: Trial) -> Generator[int | None, None, list[float]]:
    """Seconds that the features of each good sample but the first one took."""
    seconds = []
    for row, tell in trial.told(range(len(trial.refs))):
        if tell is not None:
            yield tell
        begun = time.perf_counter()
        try:
            trial.read(row, compute, trial.spec)
        except BadMedia:
            continue
        seconds.append(time.perf_counter() - begun)
    yield None
    return seconds[1:] if len(seconds) > 1 else seconds

"""Background threads that make the next items while the current one is used, and reading ahead from the disk."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from threading import Barrier
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")
Chosen = dict[str, np.ndarray]  # modality -> positions of one round's samples

WORKERS = 2  # items in the making. While a model computes one thread at a time has work; without one both have
START_SECONDS = 60  # in which threads start; where one cannot, the others do not wait for ever


def ahead(jobs: Iterator[Callable[[], T]]) -> Iterator[T]:
    """What the jobs return, in their order; the next ones run in background threads while an item is used.

    The iterator itself is advanced here. What a job raises is raised here, as itself, when its turn comes. The threads
    have ended when the generator has, however it ends: at the last item, by an error on either side, closed early,
    interrupted. Each uses one core of torch's: more teams of threads beside the one that trains would be in its way.
    """
    threads = torch.get_num_threads()  # also makes this thread keep its number
    with ThreadPoolExecutor(WORKERS, "mla-data") as pool:
        all_started = Barrier(WORKERS, timeout=START_SECONDS)
        list(pool.map(use_one_core, [all_started] * WORKERS))
        torch.set_num_threads(threads)  # what threads to come start with
        coming = deque(pool.submit(job) for job in islice(jobs, WORKERS))
        while coming:
            item = coming.popleft().result()
            coming.extend(pool.submit(job) for job in islice(jobs, 1))
            yield item


def use_one_core(all_started: Barrier) -> None:
    """For this thread alone: torch keeps a number per thread, taken from what was set last when it is first asked."""
    torch.set_num_threads(1)
    torch.get_num_threads()
    all_started.wait()  # no thread takes the start of another


def read_ahead(rounds: Iterator[Chosen], window: int) -> Iterator[tuple[Chosen, Chosen]]:
    """Each round with what to have the kernel read now: what the next `window` rounds need, a part with each round.

    With the first round comes what its own window needs. Positions are sorted, so that neighbours are read in one go.
    """
    current = list(islice(rounds, window))
    first = together(current)
    while current:
        following = list(islice(rounds, window))
        parts = {m: np.array_split(positions, len(current)) for m, positions in together(following).items()}
        for number, chosen in enumerate(current):
            soon = {m: part[number] for m, part in parts.items()}
            yield chosen, {m: np.concatenate([first[m], soon.get(m, first[m][:0])]) for m in first} if first else soon
            first = {}
        current = following


def together(rounds: list[Chosen]) -> Chosen:
    """All positions of some rounds, sorted, each once."""
    return {m: np.unique(np.concatenate([chosen[m] for chosen in rounds])) for m in (rounds[0] if rounds else ())}

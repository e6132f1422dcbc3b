"""One background thread that makes the next item while the current one is used, and reading ahead from the disk."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")
Chosen = dict[str, np.ndarray]  # modality -> positions of one round's samples


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The items of an iterator, in order; each is made in one background thread while the one before it is used.

    What the iterator raises is raised here, as itself. The thread has ended when the generator has, however it ends: at
    the last item, by an error on either side, closed early, interrupted. It computes on one core of torch's: a second
    team of threads beside the one that trains would only be in its way.
    """
    threads = torch.get_num_threads()  # also makes this thread keep its number
    with ThreadPoolExecutor(1, "mla-data") as pool:
        pool.submit(use_one_core).result()
        torch.set_num_threads(threads)  # what threads to come start with
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def use_one_core() -> None:
    """For this thread alone: torch keeps a number per thread, taken from what was set last when it is first asked."""
    torch.set_num_threads(1)
    torch.get_num_threads()


def read_ahead(rounds: Iterator[Chosen], window: int, will_need: Callable[[str, np.ndarray], None]) -> Iterator[Chosen]:
    """The rounds as they are; what the next `window` of them read is announced, bit by bit, during those before.

    will_need(modality, positions): called with sorted positions, so that neighbours are read in one go.
    """
    current = list(islice(rounds, window))
    for m, positions in together(current).items():
        will_need(m, positions)
    while current:
        following = list(islice(rounds, window))
        parts = {m: np.array_split(positions, len(current)) for m, positions in together(following).items()}
        for number, chosen in enumerate(current):
            for m, part in parts.items():
                will_need(m, part[number])
            yield chosen
        current = following


def together(rounds: list[Chosen]) -> Chosen:
    """All positions of some rounds, sorted, each once."""
    return {m: np.unique(np.concatenate([chosen[m] for chosen in rounds])) for m in (rounds[0] if rounds else ())}

"""Taking part in a run of several processes: joining them, one voice for their errors, and an end for all.

`torchrun`, or `engine.launch` for `--devices`, starts the processes and tells each its rank in the environment.
Ctrl-C and SIGTERM are rank 0's to answer; when it ends the others lose it, and end without a word.
"""

import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from mla_cli.core.ranks import ALONE, RankLost, Ranks
from mla_cli.engine.events import Steps, Value
from mla_cli.errors import MlaError

PATIENCE = timedelta(days=1)  # others may wait while rank 0 computes frozen features; a dead process is noticed at once
PARENT, STORE = "MLA_PARENT", "MLA_STORE"  # set by `engine.launch`: its process, and the file where ranks meet
LOOK_AGAIN = 0.5  # seconds
SPOKEN = "mla/spoken"  # key of the store: how many ranks wanted to report why the run ends


def is_rank() -> bool:
    """Whether this process was started as one of several."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys() and int(os.environ["WORLD_SIZE"]) > 1


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The ranks of this run, while it lasts; ALONE, at no cost, where nobody started several processes.

    Raises SystemExit in place of an error that another rank reports.
    """
    if not is_rank():
        yield ALONE
        return
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    answer_signals(ranks)
    try:
        store = meet(device, ranks)
    except MlaError:
        if os.environ["LOCAL_RANK"] == "0":
            raise
        raise SystemExit(1) from None
    try:
        yield ranks
    except (KeyboardInterrupt, RankLost) as error:
        if PARENT in os.environ:  # it says which one is lost
            if isinstance(error, RankLost):
                raise SystemExit(1) from error
            raise
        found = gone(store, ranks)  # torchrun ends the others with SIGTERM
        if not speaks(store):
            raise SystemExit(1) from error
        if isinstance(error, KeyboardInterrupt) and not found.startswith("rank"):
            raise
        message = found or str(error)
        raise MlaError(message, "go on from the last checkpoint: the same command with `--resume`") from error
    except MlaError as error:
        if speaks(store):
            raise
        raise SystemExit(1) from error
    finally:
        leave()


def leave() -> None:
    """Close the connections: a process that ends with gloo's threads alive ends with an abort."""
    import torch.distributed as dist

    if sys.exc_info()[0] is None or dist.get_backend() == "gloo":  # with NCCL a lost rank would be waited for
        with suppress(RuntimeError):
            dist.destroy_process_group()


def answer_signals(ranks: Ranks) -> None:
    """Rank 0 is interrupted as any command; the others wait for its end. A parent that is gone ends them all."""
    if not ranks.is_first:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    if parent := os.environ.get(PARENT):
        threading.Thread(target=end_with, args=(int(parent),), daemon=True).start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})


def end_with(parent: int) -> None:
    """End this process as soon as its parent is gone (`kill -9`)."""
    while os.getppid() == parent:
        time.sleep(LOOK_AGAIN)
    os._exit(1)  # files appear whole or not at all


def meet(device: str, ranks: Ranks) -> Any:
    """Wait for the other ranks; returns the store that all of them see. Raises MlaError where that is not possible."""
    import torch
    import torch.distributed as dist

    backend = "gloo"
    if device in ("auto", "cuda") and torch.cuda.is_available():
        here, local, needed = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"]), os.environ["LOCAL_WORLD_SIZE"]
        if int(needed) > here:
            raise MlaError(
                f"{needed} processes on this machine, and {here} CUDA devices: each process needs its own",
                f"start {here}, or add `--device cpu`",
            )
        torch.cuda.set_device(local)  # `cuda` now means this one
        backend = "cpu:gloo,cuda:nccl"
    place: dict[str, Any] = {}
    if path := os.environ.get(STORE):
        place = {"init_method": f"file://{path}", "rank": ranks.rank, "world_size": ranks.world}
    try:
        dist.init_process_group(backend, timeout=PATIENCE, **place)
    except (RuntimeError, ValueError) as error:
        raise MlaError(
            f"rank {ranks.rank} on {platform.node()} cannot join the others: {str(error).splitlines()[0]}",
            "start all of them with the same `torchrun` command, or use `mla train --devices N` on one machine",
        ) from error
    store = dist.distributed_c10d._get_default_store()
    store.set(f"mla/rank {ranks.rank}", f"{os.getpid()} {platform.node()}")
    return store


def speaks(store: Any) -> bool:
    """Whether this rank is the first that wants to report why the run ends: only that one does."""
    try:
        return bool(store.add(SPOKEN, 1) == 1)
    except RuntimeError:  # its host is gone, and has spoken
        return False


def gone(store: Any, ranks: Ranks) -> str:
    """Which rank of this machine has died, or else those of other machines, of which one has; "" where none can."""
    time.sleep(LOOK_AGAIN)  # until whoever started it has noticed
    elsewhere = []
    for rank in range(ranks.world):
        try:
            pid, host = store.get(f"mla/rank {rank}").decode().split(" ", 1)
        except RuntimeError:
            return ""
        if host != platform.node():
            elsewhere.append(f"rank {rank} on {host}")
        elif not is_running(int(pid)):
            return f"rank {rank} on {host} (process {pid}) has died, and the others cannot go on without it"
    return f"lost a process on another machine, one of: {', '.join(elsewhere)}" if elsewhere else ""


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def attend(steps: Steps[Value]) -> Value:
    """Take part in work whose events rank 0 shows."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            value: Value = stop.value
            return value

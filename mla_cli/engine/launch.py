"""`mla train --devices N`: start N processes of the same command on this machine, and end with them.

What torchrun does for one node, without its import, its open port and its tracebacks: the processes meet in a file,
talk over the loopback device, run in sessions of their own, and get the signals that are theirs.
"""

import os
import platform
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mla_cli.engine.executor import accelerators, default_workers
from mla_cli.engine.together import PARENT, STORE
from mla_cli.errors import MlaError

GRACE = 10.0  # seconds that the others have to end after the first has failed
TICK = 0.05


def too_many(count: int, device: str, batch_size: int) -> str:
    """Why `count` processes cannot share a run on this machine; "" where they can."""
    if count > 1 and device == "mps":
        return f"--devices {count}: there is one mps device, and processes cannot share it"
    if count > batch_size:
        return f"--devices {count}: a batch has {batch_size} samples (train.batch_size), fewer than processes"
    kind, found = accelerators(device)
    if kind == "MPS" and count > 1:
        return f"--devices {count}: there is one mps device; add --device cpu to use {count} processes on the CPU"
    if kind == "CUDA" and count > len(found):
        return f"--devices {count}: this machine has {len(found)} CUDA device" + "s" * (len(found) != 1)
    return ""


def launch(count: int, command: Sequence[str], again: str) -> int:
    """Run a command as `count` ranks; returns the exit code of the whole, when every process has ended.

    A rank that fails has said why. Raises MlaError for one that was killed; again: the command that goes on.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        raise MlaError("`--devices` does not work on this system", "start the processes with `torchrun`")
    with tempfile.TemporaryDirectory(prefix="mla-ranks-") as folder:
        environment = os.environ | {
            PARENT: str(os.getpid()),
            STORE: str(Path(folder, "store")),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
        }
        environment.setdefault("OMP_NUM_THREADS", str(max(1, default_workers() // count)))
        if loopback := next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None):
            environment.setdefault("GLOO_SOCKET_IFNAME", loopback)
        processes: list[subprocess.Popen[bytes]] = []
        signals = {signal.SIGINT, signal.SIGTERM}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # inherited: a rank answers once it can
        try:
            for rank in range(count):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                out = None if rank == 0 else subprocess.DEVNULL
                processes.append(subprocess.Popen(command, env=environment | own, stdout=out, start_new_session=True))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            try:
                wait(processes)
            except KeyboardInterrupt as stop:
                return interrupted(processes, stop)
            killed = [r for r, p in enumerate(processes) if p.returncode < 0 and p.returncode != -signal.SIGUSR2]
            if killed:  # NCCL aborts those that lost another: the one that did not is the reason
                rank = min(killed, key=lambda r: processes[r].returncode == -signal.SIGABRT)
                process = processes[rank]
                name = signal.Signals(-process.returncode).name
                raise MlaError(
                    f"rank {rank} on {platform.node()} (process {process.pid}) was killed by {name}",
                    f"what is finished is kept. To go on: {again}",
                )
            return max(process.returncode for process in processes)
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    process.kill()
                process.wait()


def wait(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Until all have ended; some time after the first failure, those that have not are ended."""
    late = float("inf")
    while None in [process.poll() for process in processes]:
        if late == float("inf") and any(process.returncode for process in processes):
            late = time.monotonic() + GRACE
        if time.monotonic() > late:
            for process in processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGUSR2)  # no handler: it ends, and is known from those others killed
            late += GRACE
        time.sleep(TICK)


def interrupted(processes: Sequence[subprocess.Popen[bytes]], stop: KeyboardInterrupt) -> int:
    """Hand an interruption on to rank 0, which keeps what there is and says how to go on."""
    number = signal.SIGINT if type(stop) is KeyboardInterrupt else signal.SIGTERM
    processes[0].send_signal(number)
    wait(processes)
    return 128 + number

"""Work on a Ray cluster: the twin of `executor.py`. The only file that knows Ray, which extra `ray` installs.

Every task is one Ray task with its own core (or GPU) and streams what it has to say. Ray's own retries are off: a task
whose worker or node dies is tried once more, as on one machine. Nodes that see our folders work in them. To others the
feature store goes through Ray's object store, once a node; what a task made comes back piece by piece and is moved into
its place when it is whole. A task that is tried again after its node died starts from what lies here, not from what
was lost with the node.
"""

import logging
import os
import pickle
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mla_cli.engine.flights import Flight, Sender, tokens
from mla_cli.engine.remote import Order
from mla_cli.engine.tasks import (
    ONE_CORE,
    Item,
    Lost,
    Needs,
    Places,
    TaskDone,
    TaskEvent,
    TaskRetried,
    no_kin,
    try_again,
)
from mla_cli.errors import MlaError

AHEAD = (
    2  # tasks that are handed over for each place: so that no node waits for us, and more nodes are seen to be needed
)
LOOK = 0.5  # seconds between two looks at the clock, where tasks have a limit
CONNECT_SECONDS = 5.0
REASONS = {  # how a worker was lost
    "WorkerCrashedError": "its process crashed",
    "OutOfMemoryError": "out of memory",
    "NodeDiedError": "its node died",
    "LocalRayletDiedError": "its node died",
    "ObjectLostError": "its node died",
}


@dataclass(frozen=True)
class Ray:
    """A cluster that is running. address: HOST:PORT, or `auto`: the one that this machine belongs to."""

    address: str = "auto"
    workers: int | None = None

    def places(self, needs: Needs = ONE_CORE) -> Places:
        nodes = [node["Resources"] for node in self.connected().nodes() if node["Alive"]]
        what = "GPU" if gpus(nodes, needs) else "CPU"
        each = 1 if what == "GPU" else needs.cores
        count = sum(int(node.get(what, 0)) // each for node in nodes)
        if not count:
            raise MlaError(
                f"no node of the Ray cluster has {each} {what}" + "s" * (each > 1),
                "start nodes with `ray start --num-cpus N`, or use `--device cpu`",
            )
        words = f"a Ray cluster of {len(nodes)} node" + "s" * (len(nodes) > 1)
        return Places(min(count, self.workers or count), f"{count} {what}" + "s" * (count > 1) + f" of {words}")

    def connected(self) -> Any:
        """The module `ray`, connected. Raises MlaError where Ray is not installed, or there is no such cluster."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # tell nobody
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # tasks without a GPU: leave their environment
        try:
            import ray
        except ImportError as error:
            raise MlaError("`--executor ray` needs Ray", "install it: `pip install 'mla-cli[ray]'`") from error
        if ray.is_initialized():
            return ray
        check_address(self.address)
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            ray.init(address=self.address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise MlaError(
                f"no Ray cluster at `{self.address}`: {str(error).strip().splitlines()[0]}",
                "start one with `ray start --head`, or name one with `--address HOST:6379`",
            ) from error
        finally:
            for number, handler in before.items():  # Ray puts its own in the place of ours
                signal.signal(number, handler)
        return ray

    def run(
        self,
        function: str,
        tasks: Sequence[Any],
        needs: Needs = ONE_CORE,
        limit: float | None = None,
        replace: Callable[[Lost], Any] = try_again,
        kin: Callable[[Any], Any] = no_kin,
    ) -> Iterator[Item]:
        """Do all tasks, as `executor.run_tasks`; Ray keeps its workers, and decides which of them does what."""
        if not tasks:
            return
        ray, count = self.connected(), self.places(needs).count
        most = count if self.workers else AHEAD * count
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        resources = {"num_cpus": needs.cores, "num_gpus": 1 if gpus(nodes, needs) else 0}
        remote = ray.remote(**resources, max_retries=0, num_returns="streaming")(begin)
        todo = [Flight(i, task) for i, task in enumerate(tasks)][::-1]
        flying: dict[Any, Flight] = {}
        with tokens(tasks) as token:
            sender = Sender(function, token, ray.put)
            try:
                while todo or flying:
                    while todo and len(flying) < most:
                        flight = todo.pop()
                        flight.begin()
                        flying[remote.remote(*sender.order(flight))] = flight
                    wait = None if limit is None else LOOK
                    ready, _ = ray.wait(list(flying), num_returns=1, timeout=wait, fetch_local=False)
                    late = [s for s, flight in flying.items() if s not in ready and flight.is_late(limit)]
                    for stream in [*ready, *late]:
                        kind, value = hear(ray, stream) if stream in ready else silence(ray, stream)
                        flight = flying[stream]
                        if kind == "event":
                            flight.told(value)
                            yield TaskEvent(flight.index, value)
                            continue
                        if kind == "piece":
                            flight.receive(*value)
                            continue
                        del flying[stream]
                        if kind == "bug":
                            raise RuntimeError(f"a worker failed:\n{value}")
                        if kind == "unseen":
                            flight.parcelled, flight.tries = True, flight.tries - 1
                            todo.append(flight)
                        elif kind == "lost":
                            flight.forget()
                            lost = flight.lost(value, stream in late)
                            flight.task = replace(lost)
                            if flight.task is None:
                                yield lost.given_up()
                            else:
                                todo.append(flight)
                                yield TaskRetried(flight.index, value)
                        else:
                            flight.land()
                            yield TaskDone(flight.index, **{kind: value})
            finally:
                for stream, flight in flying.items():
                    ray.cancel(stream, force=True)
                    flight.forget()


def hear(ray: Any, stream: Any) -> tuple[str, Any]:
    """The next message of a task; (lost, why) where its worker is gone, an error where it could not even begin."""
    try:
        message: tuple[str, Any] = pickle.loads(ray.get(next(stream)))  # noqa: S301  from our own worker
        return message
    except StopIteration:
        return "lost", "it ended early"
    except ray.exceptions.RayTaskError as error:
        return "error", cannot_begin(error)
    except ray.exceptions.RayError as error:
        return "lost", REASONS.get(type(error).__name__, type(error).__name__)


def silence(ray: Any, stream: Any) -> tuple[str, Any]:
    """End a task that tells nothing any more."""
    ray.cancel(stream, force=True)
    return "lost", "it hung"


def begin(order: Order, store: Any, begun: Any) -> Iterator[bytes]:
    """What a Ray worker does: the messages of `remote.carry_out`, pickled."""
    import ray

    from mla_cli.engine.remote import carry_out

    def opened(parcel: Any) -> Iterator[tuple[str, bytes]]:
        return ((name, ray.get(piece)) for name, piece in parcel)

    try:
        for message in carry_out(order, None if store is None else lambda: opened(store), lambda: opened(begun)):
            yield pickle.dumps(message)
    except MlaError as error:  # of unpacking: a full disk
        yield pickle.dumps(("error", error))


def gpus(nodes: Sequence[dict[str, float]], needs: Needs) -> bool:
    """Whether tasks take a GPU each: where they are asked to, or may and the cluster has some."""
    return needs.device == "cuda" or (needs.device == "auto" and any(node.get("GPU", 0) >= 1 for node in nodes))


def check_address(address: str) -> None:
    """Raise MlaError where nobody answers; Ray itself would try for a minute, and then end the process."""
    if address.startswith("ray://"):
        raise MlaError(
            f"`{address}` is for Ray Client, which tells no events", "run mla on a node of it, with `--address auto`"
        )
    if address == "auto":
        noted = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray" / "ray_current_cluster"
        address = os.environ.get("RAY_ADDRESS") or (noted.read_text().strip() if noted.is_file() else "")
        if not address:
            return  # Ray looks for other clusters, and says so where there are none
    host, colon, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error) if colon else "no port"
        raise MlaError(
            f"no Ray cluster at `{address}`: {why}", "name it as HOST:PORT, as `ray start --head` has printed it"
        ) from error


def cannot_begin(error: BaseException) -> MlaError:
    """Of a worker that failed outside of the task: most likely it lacks this package."""
    lines = [line.strip() for line in str(error).strip().splitlines() if "Error" in line] or [repr(error)]
    return MlaError(
        f"a node of the Ray cluster cannot do the task: {lines[-1]}", "install the same mla-cli on every node"
    )

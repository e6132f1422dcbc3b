"""Steps of a recipe measured on this CPU, in a process of their own, so that its peak memory is theirs.

The step is the method's own, with its optimisers and HGM, on random inputs of the right shapes: no data are read,
nothing is augmented, the recipe's weights files are not loaded.
"""

import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mla_cli.engine.cluster import Cluster, Round, rounds
from mla_cli.engine.cost import Paper, build_method, input_shape, on_paper
from mla_cli.engine.events import Note, Steps
from mla_cli.engine.executor import TaskDone, default_workers, run_tasks
from mla_cli.engine.shapes import Shapes
from mla_cli.errors import MlaError
from mla_cli.schema import Recipe

BATCHES = (2, 4)  # samples of a measured step
REPEATS = 5  # steps of each, after one that does not count
ROOM = 0.8  # share of the machine's memory that a step may take on paper to be tried


@dataclass(frozen=True)
class Task:
    """What the measuring process is asked."""

    recipe: Recipe
    shapes: Shapes
    batch_size: int
    threads: int


@dataclass(frozen=True)
class Measured:
    """seconds: of each step. peak: bytes of resident memory over those of the imports; None where no kernel tells."""

    batch_size: int
    seconds: list[float]
    peak: int | None
    threads: int

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


@dataclass(frozen=True)
class Cost:
    """On paper, and measured at some batch sizes (none: it was not asked for, or there is not enough memory).

    rounds: on paper too, on the GPUs of `cluster`; none where no cluster was asked for.
    """

    paper: Paper
    measured: list[Measured]
    cluster: Cluster | None = None
    rounds: list[Round] = field(default_factory=list)

    def seconds_at(self, batch_size: int) -> float | None:
        """Seconds of a step at another batch size, on the straight line through the measured medians."""
        return on_line([(m.batch_size, m.median) for m in self.measured], batch_size)

    def peak_at(self, batch_size: int) -> float | None:
        """Bytes of resident memory at another batch size, likewise."""
        return on_line([(m.batch_size, m.peak) for m in self.measured if m.peak is not None], batch_size)


def on_line(points: list[tuple[int, float]], at: int) -> float | None:
    """The value at `at` of the line through the first and the last point; None where it does not rise."""
    if len(points) < 2 or points[-1][1] <= points[0][1]:
        return None
    (first, low), (last, high) = points[0], points[-1]
    return low + (high - low) / (last - first) * (at - first)


def cost(
    recipe: Recipe, data_dir: Path | None = None, measured: bool = True, cluster: Cluster | None = None
) -> Steps[Cost]:
    """What a recipe costs; the generator's value is a `Cost`. Raises MlaError where shapes cannot be known."""
    paper = on_paper(recipe, data_dir=data_dir)
    on_gpus = [] if cluster is None else rounds(paper, cluster)
    found = []
    threads = recipe.train.threads or default_workers()
    for batch_size in BATCHES if measured else ():
        needed, there = sum(paper.memory(batch_size).values()), physical_memory()
        if there is not None and needed > ROOM * there:
            short = f"it needs {needed / 1e9:.1f} GB on paper, this machine has {there / 1e9:.1f}"
            yield Note(f"not measured at batch {batch_size}: {short}", warning=True)
            continue
        how = f"{REPEATS} steps at batch {batch_size}, threads: {threads}"
        yield Note(f"measuring {how} (--no-measure leaves it out)")
        task = Task(recipe, paper.shapes, batch_size, threads)
        for done in run_tasks("mla_cli.engine.measure:measure", [task], 1, replace=lambda lost: None):
            if isinstance(done, TaskDone):
                if done.error is not None:
                    raise MlaError(f"measuring failed: {done.error.message}", "leave it out with `--no-measure`")
                found.append(done.value)
    return Cost(paper, found, cluster, on_gpus)


def measure(task: Task) -> Measured:
    """Time steps of a method; runs in a worker."""
    import torch

    from mla_cli.core.method import Batch
    from mla_cli.engine.optimizers import build_optimizers

    torch.set_num_threads(task.threads)
    import_everything(task)
    reset_peak()
    before = resident("VmRSS")
    recipe, shapes, count = task.recipe, task.shapes, task.batch_size
    method = build_method(recipe, shapes)
    build_optimizers(recipe, method, torch.device("cpu"))
    source = torch.Generator().manual_seed(0)
    inputs = {}
    for m in method.modalities:
        shape, is_text = input_shape(recipe, shapes, m, method.encoders[m])
        if is_text:
            inputs[m] = torch.randint(0, shapes.tokens[m], (count, *shape), generator=source, dtype=torch.int32)
        else:
            inputs[m] = torch.randn(count, *shape, generator=source)
    method.blanks = {m: torch.zeros_like(x[0]) for m, x in inputs.items()}
    labels = torch.randint(0, shapes.num_classes, (count,), generator=source)
    positions = torch.arange(count)
    method.train()
    method.start_epoch(1)
    seconds = []
    for number in range(REPEATS + 1):
        batch = Batch(
            1,
            number,
            REPEATS + 1,
            dict(inputs),
            dict.fromkeys(inputs, labels),
            positions=dict.fromkeys(inputs, positions),
        )
        begin = time.perf_counter()
        method.step(batch)
        seconds.append(time.perf_counter() - begin)
    peak = resident("VmHWM")
    # the kernel's counts lag by some pages, which is more than a tiny model needs
    grown = None if before is None or peak is None else max(0, peak - before)
    return Measured(count, seconds[1:], grown, task.threads)


def import_everything(task: Task) -> None:
    """What a first step loads beside its own tensors: encoders, method, and what torch's optimisers import late."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        build_method(task.recipe, task.shapes)
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, fused=True)
    layer(torch.zeros(2, 2)).sum().backward()
    optimizer.step()


def resident(field: str) -> int | None:
    """Bytes that Linux counts for this process: `VmRSS` now, `VmHWM` at the peak; None on other systems."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def reset_peak() -> None:
    """Let `VmHWM` start again from what is resident now; where that is refused, the imports' own peak stays in it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def physical_memory() -> int | None:
    """Bytes of memory of this machine, or None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def matrix_speed(size: int = 1024, repeats: int = 3) -> float:
    """FLOP/s that this CPU reaches in a float32 product of matrices: what no step of a model exceeds by much."""
    import torch

    one = torch.rand(size, size)
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        one @ one
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / min(times[1:])

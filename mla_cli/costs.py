"""What a recipe costs, as tables to read and as tidy rows: `mla recipes show NAME --cost`."""

from typing import Any

import pandas as pd

from mla_cli.engine.cluster import Cluster
from mla_cli.engine.cost import Paper
from mla_cli.engine.measure import Cost
from mla_cli.render import Wide, counted
from mla_cli.tables import print_tables

COLUMNS = ("recipe", "method", "precision", "basis", "batch_size", "part", "quantity", "value", "unit", "n", "threads")


def size(count: float) -> str:
    """Bytes with a decimal unit, three digits.

    >>> size(163840), size(4258.3e6), size(12)
    ('164 kB', '4.26 GB', '12 B')
    """
    return scaled(count, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)))


def scaled(count: float, units: tuple[tuple[str, float], ...]) -> str:
    """A number in the largest of these units that it reaches, three digits."""
    name, unit = next((u for u in units if count >= u[1]), units[-1])
    value = count / unit
    digits = 0 if value >= 100 or value == int(value) else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {name}".rstrip()


def work(flops: float) -> str:
    """
    >>> work(2.8e9), work(2.04e12), work(900)
    ('2.80 G', '2.04 T', '900')
    """
    return scaled(flops, (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0)))


def cost_tables(cost: Cost) -> list[Wide]:
    """On paper: parts, and memory of a step; and, where it was measured, seconds and memory."""
    tables = [parts_table(cost), memory_table(cost)]
    tables += [cluster_table(cost, cost.cluster)] if cost.cluster is not None else []
    return [*tables, measured_table(cost)] if cost.measured else tables


def parts_table(cost: Cost) -> Wide:
    """Parameters, activations, FLOPs and bytes of the store, per modality and in all."""
    paper, recipe = cost.paper, cost.paper.recipe
    batch, parts = recipe.train.batch_size, cost.paper.encoders
    rows = [
        [
            f"{p.name} ({p.encoder})",
            " x ".join(map(str, p.shape)),
            f"{p.trained:,}",
            f"{p.frozen:,}",
            size(p.trace.kept),
            size(p.trace.kept_at(batch)),
            work(p.forward_flops),
            work(p.step_flops * batch),
            size(p.stored),
        ]
        for p in parts
    ]
    rows.append(["head", "", f"{paper.head:,}", "0", "", "", "", "", ""])
    rows.append(
        [
            "total",
            "",
            f"{sum(p.trained for p in parts) + paper.head:,}",
            f"{sum(p.frozen for p in parts):,}",
            size(sum(p.trace.kept for p in parts)),
            size(sum(p.trace.kept_at(batch) for p in parts)),
            work(sum(p.forward_flops for p in parts)),
            work(sum(p.step_flops for p in parts) * batch),
            size(sum(p.stored for p in parts)),
        ]
    )
    columns = [
        "part",
        "input",
        "trained",
        "frozen",
        "kept/sample",
        f"kept, batch {batch}",
        "FLOP/sample",
        f"FLOP/step, batch {batch}",
        "store/sample",
    ]
    notes = [
        "kept: activations that the backward pass needs; FLOP/sample forward, FLOP/step forward and backward, "
        "each with its part of the head",
        *([store_line(paper)] if paper.shapes.samples is not None else []),
        *paper.notes,
    ]
    title = f"{recipe.name}: on paper, {paper.shapes.num_classes} classes, precision {recipe.train.precision}"
    return Wide(title, columns, rows, notes)


def store_line(paper: Paper) -> str:
    """What the store of the whole set takes."""
    each, count = sum(p.stored for p in paper.encoders), paper.shapes.samples or 0
    whose = "prepared" if paper.shapes.is_prepared else "published"
    return f"store of the {count:,} samples {whose}: {size(each * count)}, where each has every modality"


def cluster_table(cost: Cost, cluster: Cluster) -> Wide:
    """Rounds on several GPUs, by arithmetic."""
    paper, recipe = cost.paper, cost.paper.recipe
    stored, reduced = sum(p.stored for p in paper.encoders), paper.reduced()
    rows = [
        [
            str(r.gpus),
            str(r.batch),
            f"{r.share}" + (f" ({counted(r.idle, 'GPU')} without)" if r.idle else ""),
            duration(r.compute),
            duration(r.exchange) if r.exchange else "",
            f"{r.rate:,.0f}",
            f"{r.efficiency:.0%}",
            f"{size(r.rate * stored)}/s",
        ]
        for r in cost.rounds
    ]
    steps = ", ".join(f"{name} {size(count)}" for name, count in reduced.items())
    notes = [
        "arithmetic, not measured: no GPU was used; without kernel launches and optimisers, so it says little where "
        "compute is far below a millisecond",
        f"assumed: {cluster.tflops:g} TFLOP/s that a GPU sustains at any batch (--tflops), {cluster.gbps:g} Gbit/s "
        f"each way of each GPU's link (--gbps), {1e6 * cluster.latency:g} us of each all_reduce (--latency)",
        f"all_reduce: 2 (W - 1) / W of the bytes of each step ({steps}), after its backward pass, nothing overlapping",
        "efficiency: samples a second of each GPU, over one GPU with the recipe's batch; read: bytes that all loaders "
        "take from the store",
    ]
    columns = ["GPUs", "batch", "of one GPU", "compute", "all_reduce", "samples/s", "efficiency", "read"]
    return Wide(f"{recipe.name}: a round on several GPUs, on paper", columns, rows, notes)


def duration(seconds: float) -> str:
    """
    >>> duration(0.0123), duration(0.00000456), duration(2)
    ('12.3 ms', '4.56 us', '2 s')
    """
    return scaled(1e9 * seconds, (("s", 1e9), ("ms", 1e6), ("us", 1e3), ("ns", 1.0)))


def memory_table(cost: Cost) -> Wide:
    """The peak of a step on paper."""
    paper, recipe = cost.paper, cost.paper.recipe
    batch = recipe.train.batch_size
    memory = paper.memory(batch)
    rows = [[name, size(count)] for name, count in memory.items()]
    rows.append(["total", size(sum(memory.values()))])
    if len(paper.encoders) == 1:
        whose = "gradients and activations of its one modality"
    elif paper.joint:
        whose = f"`{recipe.method.name}` steps all modalities together: gradients and activations of all"
    else:
        whose = f"`{recipe.method.name}` steps one modality at a time: gradients and activations of {paper.largest}"
    notes = [whose, "without workspaces of kernels, the batch being prepared and the allocator's slack"]
    return Wide(f"{recipe.name}: memory of a step at batch {batch}, on paper", ["part", "memory"], rows, notes)


def measured_table(cost: Cost) -> Wide:
    """Seconds of a step and its peak memory on this CPU, and the line through them at the recipe's batch."""
    batch, recipe = cost.paper.recipe.train.batch_size, cost.paper.recipe
    rows = [
        [
            str(m.batch_size),
            f"{m.median:.3g} s",
            f"{min(m.seconds):.3g} to {max(m.seconds):.3g} s",
            "" if m.peak is None else size(m.peak),
            size(sum(cost.paper.memory(m.batch_size).values())),
        ]
        for m in cost.measured
    ]
    seconds, peak = cost.seconds_at(batch), cost.peak_at(batch)
    if seconds is not None:
        on_paper = size(sum(cost.paper.memory(batch).values()))
        rows.append([f"{batch} (extrapolated)", f"{seconds:.3g} s", "", "" if peak is None else size(peak), on_paper])
    first = cost.measured[0]
    notes = [
        f"a round of `{recipe.method.name}` on random inputs, median of n = {len(first.seconds)} after one more, "
        f"{counted(first.threads, 'thread')}; memory over that of the imports, in a process of its own"
    ]
    if seconds is not None:
        notes.append("extrapolated: on the straight line through the measured ones, nothing was run at that size")
    columns = ["batch", "round", "range", "peak memory", "on paper"]
    return Wide(f"{recipe.name}: measured on this CPU", columns, rows, notes)


def cost_rows(cost: Cost) -> pd.DataFrame:
    """Tidy rows: one number each, in bytes, FLOP, seconds or parameters."""
    paper, recipe = cost.paper, cost.paper.recipe
    batch = recipe.train.batch_size
    rows: list[dict[str, Any]] = []

    def add(basis: str, size: int, part: str, quantity: str, value: float, unit: str, **more: Any) -> None:
        common = {"recipe": recipe.name, "method": recipe.method.name, "precision": recipe.train.precision}
        facts = {"basis": basis, "batch_size": size, "part": part, "quantity": quantity, "value": value, "unit": unit}
        rows.append(common | facts | more)

    for p in paper.encoders:
        add("paper", 1, p.name, "parameters_trained", p.trained, "parameters")
        add("paper", 1, p.name, "parameters_frozen", p.frozen, "parameters")
        add("paper", 1, p.name, "kept", p.trace.kept, "bytes")
        add("paper", batch, p.name, "kept", p.trace.kept_at(batch), "bytes")
        add("paper", 1, p.name, "forward", p.forward_flops, "FLOP")
        add("paper", batch, p.name, "step", p.step_flops * batch, "FLOP")
        add("paper", 1, p.name, "stored", p.stored, "bytes")
    add("paper", 1, "head", "parameters_trained", paper.head, "parameters")
    for name, count in paper.memory(batch).items():
        add("paper", batch, name, "memory", count, "bytes")
    for name, count in paper.reduced().items():
        add("paper", batch, name, "reduced", count, "bytes")
    if paper.shapes.samples is not None:
        stored = sum(p.stored for p in paper.encoders) * paper.shapes.samples
        add("paper", paper.shapes.samples, "store", "stored", stored, "bytes")
    for r in cost.rounds:
        part = f"round on {counted(r.gpus, 'GPU')}"
        add("assumed", r.batch, part, "compute", r.compute, "s")
        add("assumed", r.batch, part, "all_reduce", r.exchange, "s")
        add("assumed", r.batch, part, "efficiency", r.efficiency, "fraction")
    for m in cost.measured:
        more = {"n": len(m.seconds), "threads": m.threads}
        add("measured", m.batch_size, "round", "seconds_median", m.median, "s", **more)
        if m.peak is not None:
            add("measured", m.batch_size, "round", "peak_memory", m.peak, "bytes", n=1, threads=m.threads)
    for quantity, value, unit in (
        ("seconds_median", cost.seconds_at(batch), "s"),
        ("peak_memory", cost.peak_at(batch), "bytes"),
    ):
        if value is not None:
            add("extrapolated", batch, "round", quantity, value, unit)
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"n": "Int64", "threads": "Int64"})


def print_cost(cost: Cost, style: str) -> None:
    """What `mla recipes show NAME --cost` shows."""
    print_tables(cost_tables(cost), cost_rows(cost), style)

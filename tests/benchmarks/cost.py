"""What the paper's recipes cost, as the tables of README.md: on paper, and a round measured at two small batches.

    python tests/benchmarks/cost.py [--no-measure] [RECIPE ...]

Figures on paper are the same everywhere. The measured ones need an idle machine, and minutes: every round of `mla` is a
forward and a backward pass of all encoders. Nothing is downloaded, nothing is read but the package.
"""

import argparse
from typing import Any

from mla_cli.costs import size, work
from mla_cli.engine.cluster import Cluster, rounds
from mla_cli.engine.measure import Cost, cost
from mla_cli.recipe import load_recipe

RECIPES = ("cremad", "kinetics_sounds", "food101", "mvsa", "iemocap")
COLUMNS = ("recipe", "parameters", "kept/sample", "FLOP/round", "memory", "store/sample")
SIZES = ("recipe", "samples", "read/sample", "store", "added up/step")
TFLOPS, GPUS, LINKS = 10.0, (8, 64), (10.0, 25.0, 100.0, 2400.0)  # assumed; Gbit/s
CLUSTERS = ("recipe", *(f"{n} GPUs, {of}" for n in GPUS for of in ("batch for all", "batch for each")))
MEASURED = ("round, batch 2", "batch 4", "memory, batch 4", "round, batch 64", "memory, batch 64")


def finish(steps: Any) -> Cost:
    """Exhaust the events; their value."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            found: Cost = stop.value
            return found


def on_paper(found: Cost) -> list[str]:
    """Cells of the first table; kept is the largest modality's, whose step decides about memory."""
    paper = found.paper
    batch = paper.recipe.train.batch_size
    largest = max(paper.encoders, key=lambda part: part.trace.kept)
    return [
        f"{(sum(p.trained + p.frozen for p in paper.encoders) + paper.head) / 1e6:.1f} M",
        f"{size(largest.trace.kept)} ({largest.name})",
        work(sum(p.step_flops for p in paper.encoders) * batch),
        size(sum(paper.memory(batch).values())),
        size(sum(p.stored for p in paper.encoders)),
    ]


def measured(found: Cost) -> list[str]:
    """Cells of the second table; those at the recipe's batch lie on the line through the others."""
    batch = found.paper.recipe.train.batch_size
    seconds, peak = found.seconds_at(batch), found.peak_at(batch)
    last = found.measured[-1]
    return [
        *(f"{m.median:.2f} s" for m in found.measured),
        "" if last.peak is None else size(last.peak),
        "" if seconds is None else f"{seconds:.0f} s",
        "" if peak is None else size(peak),
    ]


def whole_set(found: Cost) -> list[str]:
    """Cells of the table of sizes: the set's samples and store, and what the largest step adds up over ranks."""
    paper = found.paper
    count, stored = paper.shapes.samples or 0, sum(p.stored for p in paper.encoders)
    return [f"{count:,}", size(stored), size(count * stored), size(max(paper.reduced().values()))]


def efficiencies(found: Cost) -> list[str]:
    """Cells of the table of clusters: efficiency on each number of GPUs, over each link."""
    cells = []
    for gpus in GPUS:
        by_link = [rounds(found.paper, Cluster((gpus,), TFLOPS, link))[1:] for link in LINKS]
        for row in zip(*by_link, strict=True):  # the recipe's batch for all GPUs, then for each of them
            cells.append(" / ".join(f"{r.efficiency:.0%}" for r in row))
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--no-measure", action="store_true")
    parser.add_argument("--quick", action="store_true", help="measure the first recipe only")
    wanted = parser.parse_args()
    timed = [] if wanted.no_measure else wanted.recipes[:1] if wanted.quick else wanted.recipes
    costs = {name: finish(cost(load_recipe(name), measured=name in timed)) for name in wanted.recipes}
    tables = ((COLUMNS, on_paper), (SIZES, whole_set), (CLUSTERS, efficiencies), (("recipe", *MEASURED), measured))
    for columns, cells in tables:
        lines = {name: cells(found) for name, found in costs.items() if cells is not measured or found.measured}
        if lines:
            print("| " + " | ".join(columns) + " |\n|:--|" + "--:|" * (len(columns) - 1))
            for name, row in lines.items():
                print("| " + " | ".join([f"`{name}`", *row]) + " |")
            print()
    for name, found in costs.items():
        for m in found.measured:
            span = f"{min(m.seconds):.2f} to {max(m.seconds):.2f} s"
            print(f"{name}, batch {m.batch_size}: {span}, n = {len(m.seconds)}, threads {m.threads}")
            compared = f"median of {len(m.seconds)} rounds, threads {m.threads}"
            print(f"RESULT {name}: round, batch {m.batch_size} | {m.median:.3f} | s | - | {compared}")
            if m.peak is not None:
                paper = sum(found.paper.memory(m.batch_size).values())
                compared = "peak resident memory over the imports / on paper"
                print(f"RESULT {name}: memory, batch {m.batch_size} | {m.peak / paper:.3f} | ratio | - | {compared}")
        paper = sum(found.paper.memory(found.paper.recipe.train.batch_size).values())
        print(f"RESULT {name}: memory on paper | {paper / 1e9:.3f} | GB | - | peak of a step at the recipe's batch")


if __name__ == "__main__":
    main()

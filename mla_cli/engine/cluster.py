"""What several GPUs bring, on paper: a round's time from its FLOPs, the bytes that ranks add up, and assumed speeds.

Data parallelism as `core/ranks.py` has it: every step, after the backward pass, one all_reduce of all its gradients. A
ring moves 2 (W - 1) / W of the bytes through each GPU's link. Nothing here is measured, and nothing overlaps.
"""

from dataclasses import dataclass

from mla_cli import registry
from mla_cli.engine.cost import Paper
from mla_cli.errors import MlaError


@dataclass(frozen=True)
class Cluster:
    """GPUs that are compared, and what is assumed of them.

    tflops: 1e12 FLOP/s that one GPU sustains, at any batch. gbps: 1e9 bit/s that each one's link carries each way.
    latency: seconds that an all_reduce takes beside its bytes.
    """

    gpus: tuple[int, ...]
    tflops: float = 10.0
    gbps: float = 100.0
    latency: float = 50e-6


@dataclass(frozen=True)
class Round:
    """A round on some GPUs. share: samples of the GPU that has most. idle: GPUs without a sample, at most of any step.

    batch: samples of all. compute, exchange: seconds. efficiency: samples a second of each GPU, over those of one
    GPU alone with the recipe's batch.
    """

    gpus: int
    batch: int
    share: int
    idle: int
    compute: float
    exchange: float
    efficiency: float

    @property
    def seconds(self) -> float:
        return self.compute + self.exchange

    @property
    def rate(self) -> float:
        """Samples a second of all GPUs."""
        return self.batch / self.seconds


def rounds(paper: Paper, cluster: Cluster) -> list[Round]:
    """One GPU, then each number of GPUs twice: with the recipe's batch for all, and with that batch for each.

    Raises MlaError for a method whose loss is more than a mean over samples: it trains in one process only.
    """
    name, batch = paper.recipe.method.name, paper.recipe.train.batch_size
    if registry.load("methods", name).Method.one_process:
        raise MlaError(f"`{name}` trains in one process only", "leave out `--gpus`, or choose another method")
    alone = one_round(paper, cluster, 1, batch, None)
    several = [gpus for gpus in dict.fromkeys(cluster.gpus) if gpus > 1]
    return [alone, *(one_round(paper, cluster, n, b, alone) for n in several for b in (batch, n * batch))]


def one_round(paper: Paper, cluster: Cluster, gpus: int, batch: int, alone: Round | None) -> Round:
    """Every sample has every modality; ranks take equal shares, none below what batch normalisation needs."""
    least = {part.name: part.least for part in paper.encoders}
    if paper.joint:
        least = dict.fromkeys(least, max(least.values()))
    working = {m: max(1, min(gpus, batch // few)) for m, few in least.items()}
    share = {m: -(-batch // count) for m, count in working.items()}
    compute = sum(share[part.name] * part.step_flops for part in paper.encoders) / (1e12 * cluster.tflops)
    exchange = 0.0
    if gpus > 1:
        moved = 2 * (gpus - 1) / gpus * sum(paper.reduced().values())
        exchange = 8 * moved / (1e9 * cluster.gbps) + len(paper.reduced()) * cluster.latency
    rate = batch / (compute + exchange) / gpus
    efficiency = 1.0 if alone is None else rate / alone.rate
    return Round(gpus, batch, max(share.values()), gpus - min(working.values()), compute, exchange, efficiency)

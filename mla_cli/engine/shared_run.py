"""The run directory where several ranks train one run: rank 0 writes it, the others take part and write nothing."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mla_cli import registry
from mla_cli.core.model import needs_two
from mla_cli.core.ranks import ALONE, RankLost, Ranks
from mla_cli.engine.run import Run
from mla_cli.errors import MlaError
from mla_cli.schema import Recipe

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mla_cli.core.method import BaseMethod


def check_ranks(recipe: Recipe, device: "torch.device", ranks: Ranks) -> None:
    """Raise MlaError for what a recipe asks for and these ranks cannot do, or would do otherwise than one process."""
    name, batch = recipe.method.name, recipe.train.batch_size
    if recipe.train.sync_batchnorm and device.type != "cuda":
        raise MlaError(
            f"`train.sync_batchnorm` works on CUDA only, and this is `{device}`",
            "leave it out: each process then normalises by its own part of the batch",
        )
    if ranks.is_alone:
        return
    if registry.load("methods", name).Method.one_process:
        raise MlaError(
            f"`{name}` trains in one process only: its loss is more than a mean over samples", "leave `--devices` out"
        )
    if ranks.world > batch:
        raise MlaError(
            f"{ranks.world} processes share batches of {batch} samples: some would never have any",
            f"use at most {batch} processes, or a larger `train.batch_size`",
        )
    if device.type == "mps":
        raise MlaError("several processes cannot share `mps`", "use `--device cpu`, or one process")


def differences(method: "BaseMethod") -> list[str]:
    """Where several ranks do not give the numbers of one process."""
    if method.ranks.is_alone:
        return []
    count, found = method.ranks.world, []
    if method.random_parts:
        found.append(f"dropout: each of the {count} processes draws its own masks, other ones than one process would")
    if not method.context.sync_batchnorm and any(needs_two(method.encoders[m]) for m in method.modalities):  # type: ignore[arg-type]
        found.append(f"batch normalisation: each of the {count} processes normalises by its own part of the batch")
    return found


def run_of(path: Path, ranks: Ranks) -> Run:
    """The run as this rank deals with it."""
    if ranks.is_alone:
        return Run(path)
    return Leader(path, ranks) if ranks.is_first else Follower(path, ranks)


@dataclass
class Leader(Run):
    """The run of rank 0, which reads checkpoints for all."""

    ranks: Ranks = ALONE

    def load_checkpoint(self, which: str) -> "tuple[dict[str, Tensor], dict[str, Any]]":
        found = super().load_checkpoint(which)
        self.ranks.told(found)
        return found

    @contextmanager
    def failing(self) -> Iterator[None]:
        """A lost rank is no reason that lies in the run: it stays `running`, to be taken up again."""
        lost: RankLost | None = None
        with super().failing():
            try:
                yield
            except RankLost as error:
                lost = error
        if lost is not None:
            raise lost


@dataclass
class Follower(Run):
    """The run of any other rank: nothing is written or held here, and what is read comes from rank 0."""

    ranks: Ranks = ALONE

    def refuse(self, resume: bool, force: bool) -> None:
        pass

    def refuse_held(self) -> None:
        pass

    def hold(self) -> Any:
        return nullcontext()

    def claim(self, recipe: Recipe, fingerprint: str, facts: Mapping[str, Any], resume: bool, force: bool) -> bool:
        return False

    def failing(self) -> Any:
        return nullcontext()

    def update(self, **facts: Any) -> None:
        pass

    def append(self, file: str, row: Mapping[str, Any]) -> None:
        pass

    def keep_history(self, epochs: int) -> None:
        pass

    def save_checkpoint(self, which: str, tensors: "Mapping[str, Tensor]", values: Mapping[str, Any]) -> None:
        pass

    def save_frozen(self, tensors: "Mapping[str, Tensor]") -> None:
        pass

    def info(self) -> dict[str, Any]:
        return {}

    def load_checkpoint(self, which: str) -> "tuple[dict[str, Tensor], dict[str, Any]]":
        found: tuple[dict[str, Tensor], dict[str, Any]] = self.ranks.told(None)
        return found

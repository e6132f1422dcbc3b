"""Out of memory, said by Python or by torch, as one error that names what fills it and what to set."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mla_cli.engine.going_on import train_command
from mla_cli.engine.run import Run
from mla_cli.engine.scoring import SCORE_BATCH
from mla_cli.engine.session import Session
from mla_cli.errors import MlaError

# torch raises a plain RuntimeError where the allocator of the CPU or of MPS finds no room
SAYINGS = ("not enough memory", "can't allocate memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error).lower() for saying in SAYINGS)


@contextmanager
def naming_memory(session: Session, run: Run) -> Iterator[None]:
    """Turn an error of memory into a MlaError. What was saved before stays: the state in memory may be half a step."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        progress, size = session.progress, session.recipe.train.batch_size
        if session.method.training:
            place = f"epoch {progress.epoch + 1}, round {progress.round + 1}"
            message = f"out of memory at {place}, `train.batch_size` {size}"
            less = f"a smaller one (`--set train.batch_size={max(1, size // 2)}`) needs less and is another run"
        else:
            message = f"out of memory while scoring, {SCORE_BATCH} samples at a time"
            less = "or choose another --device"
        go_on = f"free some memory and go on with `{train_command(run.path, run.info(), '--resume')}`"
        raise MlaError(message, f"{go_on}; {less}") from error

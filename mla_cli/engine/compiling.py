"""`train.compile`: the encoders' training steps through `torch.compile`.

A compiled encoder is used for full batches in training only. The last batch of an epoch, or one that lacks samples of a
modality, has another size: it runs uncompiled, so that every encoder is compiled once, for one shape, and what a batch
computes depends on its size alone, also in a resumed run. Validation, diagnostics and scoring run uncompiled, as
`mla eval` will. The encoders themselves stay as they are: parameters, their names, and so checkpoints.

Fused arithmetic rounds otherwise, and dropout draws other masks: a compiled run is another run (`recipe_hash`).
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mla_cli.core.model import Encoder
from mla_cli.errors import MlaError


class CompiledEncoder:
    """An encoder for training: (n, *input) -> (n, d), compiled where n is `batch_size`."""

    def __init__(self, modality: str, encoder: Encoder, batch_size: int, backend: str = "inductor"):
        self.modality, self.encoder, self.batch_size = modality, encoder, batch_size
        self.compiled: Callable[[Tensor], Tensor] = torch.compile(encoder, dynamic=False, backend=backend)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Features of a batch. Raises MlaError where torch cannot build the code."""
        run = self.compiled if len(inputs) == self.batch_size else self.encoder
        try:
            features: Tensor = run(inputs)
        except torch._dynamo.exc.ShortenTraceback as error:  # no C++ compiler or no Triton, or what they cannot build
            raise MlaError(
                f"`train.compile`: torch could not compile the encoder of `{self.modality}`: {first_line(error)}",
                "it needs a C++ compiler (`apt-get install g++`, or set `CXX`), on CUDA Triton; "
                "or train with `--set train.compile=false`",
            ) from error
        return features


def first_line(error: Exception) -> str:
    """What an error says, without torch's advice below it."""
    cause = getattr(error, "inner_exception", error)
    return next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)


def compile_encoders(
    encoders: nn.ModuleDict, batch_size: int, backend: str = "inductor"
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Modality -> its encoder for training; those with a frozen network are left out, as they hardly compute."""
    import torch._dynamo  # before its settings; takes a second, so it is not at the top

    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a missing GPU
    trained = {m: encoder for m, encoder in encoders.items() if isinstance(encoder, Encoder) and not encoder.frozen}
    # All encoders share one code object, and torch gives up on one after 8 shapes, silently.
    torch.compiler.config.recompile_limit = max(torch.compiler.config.recompile_limit, 2 * len(trained) + 8)
    torch._functorch.config.donated_buffer = False  # else a second backward (`mmpareto`) is refused
    return {m: CompiledEncoder(m, encoder, batch_size, backend) for m, encoder in trained.items()}

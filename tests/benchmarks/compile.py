"""What does `train.compile` gain?

    python tests/benchmarks/compile.py [ENCODER ...]

A training step (forward, backward, SGD) of one encoder on a full batch that lies in memory, as it is and through
`torch.compile` as `train.compile` uses it; one torch thread, processor time, medians of `REPETITIONS` alternating ones.
Compiling itself is timed apart: it is paid once a run (torch keeps the code in a cache folder for later runs). There is
no limit: whether it pays depends on the encoder, the device and the number of epochs.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mla_cli.core.model import Encoder, build_encoder
from mla_cli.engine.compiling import compile_encoders
from mla_cli.schema import EncoderSection

REPETITIONS = 7
SECONDS = 0.5  # about so long is one repetition
WIDTH = 128
# encoder -> shape of an input, batch size
CASES: dict[str, tuple[tuple[int, ...], int]] = {
    "mlp": ((240,), 64),
    "convnet": ((3, 32, 32), 64),
    "resnet18": ((3, 64, 64), 16),
}


def seconds(step: Callable[[], object], count: int) -> float:
    """Processor time of one step, the mean of `count`."""
    begin = time.process_time()
    for _ in range(count):
        step()
    return (time.process_time() - begin) / count


def compare(name: str) -> None:
    """Time an encoder both ways and print the gain."""
    shape, batch_size = CASES[name]
    section = EncoderSection.model_validate({"name": name})
    encoder: Encoder = build_encoder("x", section, shape, None, WIDTH, 0)
    inputs = torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1e-4, momentum=0.9, fused=True)

    def step(run: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def once() -> None:
            run(inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return once

    ways = {"plain": step(encoder)}
    ways["compiled"] = step(compile_encoders(torch.nn.ModuleDict({"x": encoder}), batch_size)["x"])
    ways["plain"]()
    begin = time.perf_counter()
    ways["compiled"]()
    wall = time.perf_counter() - begin
    count = max(1, round(SECONDS / max(seconds(ways["plain"], 3), 1e-6)))
    times: dict[str, list[float]] = {way: [] for way in ways}
    for repetition in range(REPETITIONS):
        for way in list(ways)[:: 1 if repetition % 2 else -1]:
            times[way].append(seconds(ways[way], count))
    plain, compiled = (1000 * statistics.median(times[way]) for way in ("plain", "compiled"))
    print(
        f"{name}: plain {plain:.2f} ms, compiled {compiled:.2f} ms a step of {batch_size}; compiling {wall:.0f} s wall"
    )
    print(
        f"RESULT compile gain, {name} | {plain / compiled:.2f} | ratio | - | plain / compiled step, batch {batch_size}"
    )


def main() -> int:
    """Compare the encoders that are named, or all."""
    torch.set_num_threads(1)
    for name in sys.argv[1:] or CASES:
        compare(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a recipe costs on paper: parameters, kept activations, FLOPs, memory of a step, size of the store.

Nothing is computed and no prepared data are needed: the encoders are built and run on torch's fake tensors, which have
shapes and no numbers (`engine/trace.py`).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mla_cli import registry
from mla_cli.data.features import row_dtype, row_shape
from mla_cli.data.store import Store
from mla_cli.engine.devices import autocast_dtype
from mla_cli.engine.shapes import Shapes, shapes_of
from mla_cli.engine.trace import Trace, trace
from mla_cli.errors import MlaError
from mla_cli.recipe import default_encoder
from mla_cli.schema import Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mla_cli.core.method import BaseMethod

FLOAT = 4  # bytes: weights, gradients and optimiser states are float32 under mixed precision too
STATES = {"sgd": 1, "adamw": 2}  # numbers that an optimiser keeps per parameter; sgd: where it has momentum
HGM_BYTES = 8  # P is float64


@dataclass(frozen=True)
class EncoderCost:
    """One modality: its encoder with the adapter, run through a linear head to a cross-entropy.

    trained, frozen: numbers of parameters. buffers: bytes. states: optimiser's numbers. stored: bytes of a sample.
    least: fewest samples that a step can take, 2 with batch normalisation.
    """

    name: str
    encoder: str
    shape: tuple[int, ...]
    trained: int
    frozen: int
    buffers: int
    states: int
    trace: Trace
    stored: int
    least: int

    @property
    def forward_flops(self) -> int:
        return self.trace.forward_flops

    @property
    def step_flops(self) -> int:
        """Forward and backward, a sample."""
        return self.trace.step_flops


@dataclass(frozen=True)
class Paper:
    """The cost of a recipe. joint: a step runs all modalities together and keeps the activations of all."""

    recipe: Recipe
    shapes: Shapes
    encoders: list[EncoderCost]
    head: int
    head_states: int
    projection: int  # bytes of HGM's P
    joint: bool
    notes: list[str] = field(default_factory=list)

    def memory(self, batch_size: int) -> dict[str, int]:
        """Bytes at the peak of a step; gradients and activations of the largest unimodal step, or of all together.

        An upper bound of these four: gradients grow while activations are let go. Not in it: workspaces of kernels,
        the batch being prepared, the allocator's slack, the diagnostics.
        """
        steps = [(FLOAT * part.trained, part.trace.kept_at(batch_size)) for part in self.encoders]
        gradients, activations = map(sum, zip(*steps, strict=True)) if self.joint else max(steps, key=sum)
        states = FLOAT * (sum(part.states for part in self.encoders) + self.head_states)
        return {
            "weights and buffers": FLOAT * (sum(p.trained + p.frozen for p in self.encoders) + self.head)
            + sum(part.buffers for part in self.encoders),
            "gradients": gradients + FLOAT * self.head,
            "optimiser states": states,
            "projection of HGM": self.projection,
            "activations": activations,
        }

    def reduced(self) -> dict[str, int]:
        """Bytes that data parallelism adds up in each step: gradients, the features' sum (MLA's h), the losses."""
        each = {p.name: FLOAT * (p.trained + self.head + self.recipe.shared_width + 1) for p in self.encoders}
        joint = FLOAT * (sum(p.trained for p in self.encoders) + self.head + 1)
        return {"all modalities": joint} if self.joint else each

    @property
    def largest(self) -> str:
        """Whose step needs most memory."""
        batch = self.recipe.train.batch_size
        return max(self.encoders, key=lambda p: FLOAT * p.trained + p.trace.kept_at(batch)).name


def on_paper(recipe: Recipe, store: Store | None = None, data_dir: Path | None = None) -> Paper:
    """The cost of a recipe; `shapes_of` says where shapes come from. Raises MlaError for what cannot be known."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from mla_cli.core.model import needs_two
    from mla_cli.engine.optimizers import optimizer_settings

    shapes = shapes_of(recipe, store, data_dir)
    with FakeTensorMode():
        method = build_method(recipe, shapes)
        found = []
        for m in method.modalities:  # `unimodal` has one
            encoder, spec = method.encoders[m], shapes.specs[m]
            parameters = list(encoder.parameters())
            trained = sum(p.numel() for p in parameters if p.requires_grad)
            cost = EncoderCost(
                name=m,
                encoder=section_of(recipe, shapes, m).name,
                shape=shapes.inputs[m],
                trained=trained,
                frozen=sum(p.numel() for p in parameters) - trained,
                buffers=sum(b.untyped_storage().nbytes() for b in encoder.buffers()),
                states=trained * states_of(optimizer_settings(recipe, f"encoder.{m}")),
                trace=trace_encoder(recipe, shapes, m, encoder),
                stored=int(np.prod(row_shape(spec))) * row_dtype(spec).itemsize,
                least=2 if needs_two(cast(Any, encoder)) else 1,
            )
            found.append(cost)
        inside = {id(p) for p in method.encoders.parameters()}
        head = sum(p.numel() for p in method.parameters() if id(p) not in inside)
    notes = list(shapes.notes)
    if any(getattr(section_of(recipe, shapes, m), "checkpointing", False) for m in shapes.modalities):
        notes.append("checkpointing: one block is computed again in the backward pass, and its activations come on top")
    frozen = [m for m in shapes.modalities if is_frozen(section_of(recipe, shapes, m))]
    if frozen:
        notes.append(f"{', '.join(frozen)}: frozen, so a step runs the adapter on features that are computed once")
    projects = recipe.method.name == "mla" and recipe.method.hgm != "off"
    return Paper(
        recipe,
        shapes,
        found,
        head,
        head * states_of(optimizer_settings(recipe, "head")),
        HGM_BYTES * recipe.shared_width**2 if projects else 0,
        method.aligned,
        notes,
    )


def states_of(settings: dict[str, Any]) -> int:
    """Numbers that an optimiser keeps per parameter."""
    return 0 if settings["optimizer"] == "sgd" and not settings["momentum"] else STATES[settings["optimizer"]]


def section_of(recipe: Recipe, shapes: Shapes, modality: str) -> Any:
    """A modality's encoder section, or that of its kind where the recipe names none."""
    return recipe.encoders.get(modality) or default_encoder(shapes.specs[modality].kind)


def build_method(recipe: Recipe, shapes: Shapes) -> "BaseMethod":
    """The method with its encoders, as initialised: weights files are not read."""
    import torch

    from mla_cli.core.method import BaseMethod, Context
    from mla_cli.core.model import build_encoders

    sections = {m: section_of(recipe, shapes, m) for m in shapes.modalities}
    encoders = build_encoders(sections, shapes.inputs, shapes.tokens, recipe.shared_width, recipe.seed)
    for m, section in sections.items():
        if is_frozen(section):
            cast(Any, encoders[m]).ready = True  # it takes the stored features
    context = Context(
        modalities=list(shapes.modalities),
        encoders=encoders,
        num_classes=shapes.num_classes,
        width=recipe.shared_width,
        seed=recipe.seed,
        section=recipe.method,
        device=torch.device("cpu"),
        label_smoothing=recipe.train.label_smoothing,
        autocast=autocast_dtype(recipe.train.precision),
        num_samples=recipe.train.batch_size,
        epochs=recipe.train.epochs,
    )
    keys = recipe.method.options().get(recipe.method.name, {})
    method: BaseMethod = registry.load("methods", recipe.method.name).Method(context, **keys)
    return method


def is_frozen(section: Any) -> bool:
    """Whether an encoder's features are computed once, so that a step runs its adapter only."""
    return bool(getattr(section, "frozen", False))


def input_shape(recipe: Recipe, shapes: Shapes, modality: str, encoder: "nn.Module") -> tuple[tuple[int, ...], bool]:
    """Shape of one sample as a step takes it, and whether it holds token numbers."""
    if is_frozen(section_of(recipe, shapes, modality)):
        return (int(encoder.network.width),), False  # type: ignore[arg-type, union-attr]
    return shapes.inputs[modality], modality in shapes.tokens


def trace_encoder(recipe: Recipe, shapes: Shapes, modality: str, encoder: "nn.Module") -> Trace:
    """A modality's unimodal step. Of a frozen encoder, whose features are stored, only the adapter and the head run."""
    import torch
    from torch import nn

    head = nn.Linear(recipe.shared_width, shapes.num_classes)
    shape, is_text = input_shape(recipe, shapes, modality, encoder)

    def loss(count: int) -> "Tensor":
        inputs = torch.zeros(count, *shape, dtype=torch.int32 if is_text else torch.float32)
        half = autocast_dtype(recipe.train.precision)
        with torch.autocast("cpu", half, enabled=half is not None):
            logits = head(encoder(inputs))
        return nn.functional.cross_entropy(logits.float(), torch.zeros(count, dtype=torch.int64))

    encoder.train()
    try:
        return trace(loss, [*encoder.parameters(), *encoder.buffers(), *head.parameters()])
    except MlaError:
        raise
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise MlaError(
            f"`encoders.{modality}` cannot be run on paper: {str(error).splitlines()[0]}",
            "choose another encoder, or measure a run: `mla train --smoke`",
        ) from error

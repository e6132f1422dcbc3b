"""Fusion weights as a recipe names them. Apart from `scoring.py` because `mla eval` must not import torch."""

from collections.abc import Iterable

from mla_cli.core import fusion
from mla_cli.errors import MlaError
from mla_cli.schema import Recipe


def fixed_weights(recipe: Recipe, modalities: Iterable[str]) -> list[float]:
    """`fusion.weights` in the modalities' order; where none are given the released values."""
    names = list(modalities)
    given = recipe.fusion.weights or fusion.released_weights(names)
    unknown = [m for m in names if m not in given]
    if unknown:
        raise MlaError(f"`fusion.weights` has no weight for `{unknown[0]}`", "give one weight per modality")
    return [given[m] for m in names]

"""Fusion weights as a recipe names them. Apart from `scoring.py` because `mla eval` must not import torch."""

from collections.abc import Iterable

from mla_cli.core import fusion
from mla_cli.errors import MlaError
from mla_cli.schema import Recipe


def fixed_weights(recipe: Recipe, modalities: Iterable[str]) -> list[float]:
    """`fusion.weights` in the modalities' order; where none are given the released values."""
    names = list(modalities)
    given = recipe.fusion.weights or fusion.released_weights(names)
    missing, unknown = [m for m in names if m not in given], [m for m in given if m not in names]
    if missing:
        beside = f", but one for `{unknown[0]}`" if unknown else ""
        hint = f"give one weight for each of {', '.join(names)}"
        raise MlaError(f"`fusion.weights` has no weight for `{missing[0]}`{beside}", hint)
    return [given[m] for m in names]

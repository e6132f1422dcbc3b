"""The grids of `mla ablate`: which settings are trained, and with which fusion rule each is read.

A setting is a recipe apart from its seed. Fusion is a test-time switch: settings that differ in it share their runs.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any

from mla_cli.errors import MlaError
from mla_cli.recipe import merge, parse_value, validate
from mla_cli.schema import Recipe

BASELINES = ("concat", "late")
# What must be equal in all rows of a table (`results.SIDE_BY_SIDE`), so that it is no axis of a grid.
APART = (
    *(
        f"dataset.{key}"
        for key in ("name", "store", "protocol", "fold", "split_seed", "split_file", "pair_seed", "limit")
    ),
    "train.select_on",
)
DROPOUT = 0.3  # `train.modality_dropout` of the preset `missing`


@dataclass(frozen=True)
class Setting:
    """One row of a table: a trained variant read with one fusion rule. label: how the row is called."""

    label: str
    recipe: Recipe
    rule: str


@dataclass
class Grid:
    """Settings x seeds. full: label of the setting that others are compared with; the first where none is named."""

    name: str
    settings: list[Setting]
    seeds: list[int]
    unimodal_from_late: bool = False
    patterns: tuple[str, ...] = ("kept_one",)
    full: str = ""

    def __post_init__(self) -> None:
        self.full = self.full or self.settings[0].label

    def recipes(self) -> list[tuple[Setting, int, Recipe]]:
        return [(s, seed, s.recipe.model_copy(update={"seed": seed})) for s in self.settings for seed in self.seeds]


def changed(recipe: Recipe, **values: Any) -> Recipe:
    """A copy with keys set (`method__name` is `method.name`), validated."""
    content = recipe.model_dump()
    for dotted, value in values.items():
        merge(content, dotted.split("__"), value)
    return validate(content, recipe.name)


def full_method(recipe: Recipe) -> Recipe:
    """MLA with the recipe's HGM variant, or `rls` where that is off, and its own fusion rule."""
    variant = recipe.method.hgm if recipe.method.hgm != "off" else "rls"
    return changed(recipe, method__name="mla", method__hgm=variant, fusion__rule=None)


def rival(recipe: Recipe, name: str, **values: Any) -> Recipe:
    """Another method with everything else equal, but its own fusion rule: it chooses the epoch and reads the row."""
    return changed(recipe, method__name=name, method__hgm="off", fusion__rule=None, **values)


def default_grid(recipe: Recipe, seeds: Sequence[int]) -> Grid:
    """MLA with HGM and DF on and off, `concat`, `late`, and every modality alone.

    DF is a test-time switch and costs no training. The modalities alone are read from `late`, whose parts are
    bit-identical to `unimodal` runs where the last epoch is selected, and otherwise trained apart.
    """
    on = full_method(recipe)
    off = changed(on, method__hgm="off")
    settings = [
        Setting("MLA (HGM, DF)", on, "entropy"),
        Setting("MLA without DF", on, "uniform"),
        Setting("MLA without HGM", off, "entropy"),
        Setting("MLA without HGM, DF", off, "uniform"),
        *(Setting(name, rival(recipe, name), "native") for name in BASELINES),
    ]
    from_late = recipe.train.select_on == "last"
    if not from_late:
        for modality in recipe.dataset.modalities or []:
            alone = rival(recipe, "unimodal", method__unimodal={"modality": modality})
            settings.append(Setting(f"unimodal {modality}", alone, "native"))
    return Grid("default", settings, list(seeds), from_late)


def missing_grid(recipe: Recipe, seeds: Sequence[int], train_rates: Sequence[float]) -> Grid:
    """`mla`, `late`, `concat` and `concat` with modality dropout, each trained at every missing rate."""
    settings = []
    for rate in train_rates:
        at = changed(recipe, train__missing_rate=float(rate))
        dropout = {"train__modality_dropout": DROPOUT}
        settings += [
            Setting(f"mla @ {rate:g}", full_method(at), "entropy"),
            Setting(f"late @ {rate:g}", rival(at, "late"), "native"),
            Setting(f"concat @ {rate:g}", rival(at, "concat"), "native"),
            Setting(f"modality dropout @ {rate:g}", rival(at, "concat", **dropout), "native"),
        ]
    return Grid("missing", settings, list(seeds), patterns=("kept_one", "subset"))


def custom_grid(recipe: Recipe, over: Sequence[tuple[str, list[Any]]], seeds: Sequence[int]) -> Grid:
    """The product of `--over key=v1,v2` values on top of the recipe.

    Raises MlaError for a key or a value given twice: of two equal settings one would be lost.
    """
    keys = [key for key, _ in over]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise MlaError(f"`--over {twice}` is given twice", f"name all its values once: `--over {twice}=v1,v2`")
    if "seed" in keys:  # every setting is trained with every seed of the plan
        raise MlaError("`seed` is no axis of the grid", "write `--seeds 0,1,2`")
    if apart := next((key for key in keys if key in APART), None):
        value = next(str(choices[0]) for key, choices in over if key == apart)
        hint = f"make a table for each: `--set {apart}={value}`, and so on"
        raise MlaError(f"`--over {apart}` would set different test items or selection rules side by side", hint)
    settings: list[Setting] = []
    for values in itertools.product(*(choices for _, choices in over)):
        content = recipe.model_dump()
        for (key, _), value in zip(over, values, strict=True):
            merge(content, key.split("."), value)
        asked = ", ".join(f"{key}={value}" for (key, _), value in zip(over, values, strict=True))
        variant = validate(content, f"{recipe.name} with {asked}")
        read = variant.model_dump()  # as the schema reads the values: a bare `off` is false in YAML
        label = ", ".join(f"{key.split('.')[-1]}={reduce(getitem, key.split('.'), read)}" for key, _ in over)
        settings.append(Setting(label, variant, variant.fusion.rule or default_rule(variant)))
        if [setting.label for setting in settings].count(label) > 1:
            raise MlaError(f"setting `{label}` stands twice in the grid", "give `--over` different values")
    return Grid("over", settings, list(seeds))


def default_rule(recipe: Recipe) -> str:
    """A method's own fusion rule, read without importing torch."""
    return "entropy" if recipe.method.name == "mla" else "native"


def parse_over(text: str) -> tuple[str, list[Any]]:
    """`method.hgm=off,rls` as the key and its values."""
    key, equals, values = text.partition("=")
    if not equals or not values:
        raise MlaError(f"`--over {text}` is not `key=value,value`", "write for example `--over method.hgm=off,rls`")
    return key.strip(), [parse_value(part) for part in values.split(",")]

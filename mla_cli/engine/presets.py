"""The named grids of `mla ablate --preset`: the tables of the paper, with rows of our own where it has none.

| preset    | rows                                                                                       |
|-----------|--------------------------------------------------------------------------------------------|
| `missing` | methods x missing rate in training (`grids.missing_grid`)                                    |
| `table1`  | every method in `methods/`, and MLA in its four HGM variants                                 |
| `table3`  | HGM x dynamic fusion (DF): HGM is trained with and without, DF is a switch at test time      |
| `hgm`     | the four variants, each with P reset never or at every epoch, on the gradient or the update  |
"""

from collections.abc import Sequence
from typing import get_args

from mla_cli import registry
from mla_cli.engine.grids import Grid, Setting, changed, full_method, missing_grid, rival
from mla_cli.errors import MlaError
from mla_cli.registry import did_you_mean
from mla_cli.schema import HgmVariant, Recipe

VARIANTS: tuple[str, ...] = get_args(HgmVariant)
COMPLETE = ("table1", "table3", "hgm")  # presets whose tables show complete modalities
PRESETS = ("missing", "table1", "table3", "hgm")
# The order of rows; a method that is not named here stands after these, in the order of the alphabet.
ORDER = ("late", "sum", "concat", "film", "bigated", "ogm", "ogm_ge", "qmf", "mmpareto", "reconboost")
FULL = "MLA (full)"


def preset_grid(name: str, recipe: Recipe, seeds: Sequence[int], train_rates: Sequence[float]) -> Grid:
    """The grid of a preset. train_rates: of `missing`. Raises MlaError for an unknown name."""
    if name == "missing":
        return missing_grid(recipe, seeds, train_rates)
    if name == "table1":
        return table1_grid(recipe, seeds)
    if name == "table3":
        return table3_grid(recipe, seeds)
    if name == "hgm":
        return hgm_grid(recipe, seeds)
    raise MlaError(f"no preset named `{name}`", did_you_mean(name, list(PRESETS)))


def table1_grid(recipe: Recipe, seeds: Sequence[int]) -> Grid:
    """Every modality alone, every rival with its own fusion, MLA's other variants, and MLA, the row to compare with.

    The modalities alone are read from `late` where that is provably the same run (`select_on: last`).
    """
    full = full_method(recipe)
    from_late = recipe.train.select_on == "last"
    settings = []
    for modality in () if from_late else recipe.dataset.modalities or ():
        alone = rival(recipe, "unimodal", method__unimodal={"modality": modality})
        settings.append(Setting(f"unimodal {modality}", alone, "native"))
    others = [name for name in registry.names("methods") if name not in (*ORDER, "unimodal", "mla")]
    settings += [Setting(name, rival(recipe, name), "native") for name in (*ORDER, *others)]
    for variant in VARIANTS:
        if variant != full.method.hgm:
            settings.append(Setting(f"MLA, HGM {variant}", changed(full, method__hgm=variant), "entropy"))
    settings.append(Setting(FULL, full, "entropy"))
    return Grid("table1", settings, list(seeds), from_late, full=FULL)


def table3_grid(recipe: Recipe, seeds: Sequence[int]) -> Grid:
    """Neither, each alone, and both. Without DF the modalities weigh alike (`fusion.rule: uniform`)."""
    on = full_method(recipe)
    off = changed(on, method__hgm="off")
    settings = [
        Setting("neither", off, "uniform"),
        Setting("HGM", on, "uniform"),
        Setting("DF", off, "entropy"),
        Setting(FULL, on, "entropy"),
    ]
    return Grid("table3", settings, list(seeds), full=FULL)


def hgm_grid(recipe: Recipe, seeds: Sequence[int]) -> Grid:
    """`off`, and every other variant with `hgm_reset` and `hgm_apply` both ways; `rls` as published comes first."""
    base = changed(full_method(recipe), method__hgm="rls")
    settings = []
    for variant in sorted(VARIANTS, key=lambda v: v != "rls"):
        for reset in ("never", "epoch"):
            for applied in ("gradient", "update"):
                keys = {"method__hgm": variant, "method__hgm_reset": reset, "method__hgm_apply": applied}
                if variant != "off":
                    settings.append(Setting(f"{variant}, reset {reset}, {applied}", changed(base, **keys), "entropy"))
    settings.append(Setting("off", changed(base, method__hgm="off"), "entropy"))
    return Grid("hgm", settings, list(seeds))

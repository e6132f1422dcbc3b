"""The shapes that a recipe works on, without prepared data: from its feature specs, the data set's file, or a store."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mla_cli import registry
from mla_cli.data.features import row_shape, token_count
from mla_cli.data.store import Store
from mla_cli.engine.prepare import feature_specs, raw_root, resolved, scan_raw
from mla_cli.errors import MlaError
from mla_cli.schema import Recipe
from mla_cli.specs import FEATURES_OF_KIND, SPEC_OF_KIND

BERT_TOKENS = 30_522  # word pieces of bert-base-uncased


@dataclass
class Shapes:
    """inputs: shape of one sample, by modality. tokens: number of token ids, of texts. notes: what was assumed.

    samples: how many the prepared data have, or else the published set (`is_prepared`); None where neither is known.
    """

    modalities: list[str]
    specs: dict[str, Any]
    inputs: dict[str, tuple[int, ...]]
    tokens: dict[str, int]
    num_classes: int
    notes: list[str] = field(default_factory=list)
    samples: int | None = None
    is_prepared: bool = False


def shapes_of(recipe: Recipe, store: Store | None = None, data_dir: Path | None = None) -> Shapes:
    """Specs: the recipe's; where it has none, the store's, the shipped data's, or the defaults of the raw kinds.

    store: the prepared data; None: those under data_dir, if they are there. Classes are the data set's; of a table
    only the store knows them. Raises MlaError naming what is not known.
    """
    module = registry.load("datasets", recipe.dataset.name)
    if store is None and data_dir is not None and (data_dir / recipe.store / "manifest.json").is_file():
        store = Store.open(data_dir / recipe.store)
    if store is not None and store.manifest["dataset"] != recipe.dataset.name:
        store = None
    known = dict(module.MODALITIES)
    modalities = recipe.dataset.modalities or list(known or recipe.features or (store.modalities if store else ()))
    classes = module.CLASSES or (store.classes if store else ())
    if not modalities or not classes:
        what = "classes" if modalities else "modalities"
        raise MlaError(
            f"the {what} of `{recipe.store}` are known only from its prepared data",
            "run `mla prepare table --table FILE` first, or give `--data-dir`",
        )
    shipped: dict[str, Any] = {}
    specs, notes = dict[str, Any](), list[str]()
    for m in modalities:
        spec: Any = recipe.features.get(m)
        if unknown(spec) and store is not None and m in store.modalities:
            spec = store.spec(m)
        if unknown(spec) and getattr(module, "BUILT_IN", False):
            shipped = shipped or shipped_specs(recipe)
            spec = shipped.get(m)
        if spec is None and m in known:
            spec = SPEC_OF_KIND[FEATURES_OF_KIND[known[m]][0]]()
        if spec is None:
            hint = registry.did_you_mean(m, list(known or recipe.features))
            raise MlaError(f"`{recipe.dataset.name}` has no modality `{m}`", hint)
        if unknown(spec):
            raise MlaError(
                f"the width of `{m}` is known only from the data",
                f"set `features.{m}.width`, or prepare `{recipe.store}` first",
            )
        specs[m] = spec
    tokens = {m: tokens_of(m, spec, store, notes) for m, spec in specs.items() if spec.kind == "text"}
    samples = getattr(module, "SAMPLES", None) if store is None else store.manifest["counts"]["samples"]
    inputs = {m: row_shape(s) for m, s in specs.items()}
    return Shapes(modalities, specs, inputs, tokens, len(classes), notes, samples, store is not None)


def unknown(spec: Any) -> bool:
    """No spec, or that of a vector whose width the data decide."""
    return spec is None or (spec.kind == "vector" and spec.width is None)


def shipped_specs(recipe: Recipe) -> dict[str, Any]:
    """The specs of a built-in data set, with the widths that its files have."""
    root = raw_root(recipe.dataset.name, None)
    manifest = scan_raw(recipe.dataset.name, root, None)
    return dict(resolved(feature_specs(manifest, recipe), manifest, root))


def tokens_of(modality: str, spec: Any, store: Store | None, notes: list[str]) -> int:
    """Number of token ids; without a vocabulary that of bert-base-uncased, which is noted."""
    if spec.tokens == "wordpiece" and spec.vocabulary is None:
        if store is not None and modality in store.modalities:
            count = int(store.manifest["modalities"][modality]["tokens"])
            notes.append(f"{modality}: {count:,} tokens, as many as the vocabulary of {store.path} has")
            return count
        notes.append(
            f"{modality}: no vocabulary is given; {BERT_TOKENS:,} tokens, as of bert-base-uncased, are assumed"
        )
        return BERT_TOKENS
    try:
        return token_count(spec)
    except MlaError as error:
        raise error.of(modality) from error

"""What pydantic finds wrong with a recipe, in our words: one message and one hint for each problem."""

from collections.abc import Sequence
from types import UnionType
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from mla_cli import registry
from mla_cli.errors import shortened, shown
from mla_cli.schema import Recipe
from mla_cli.specs import SPEC_OF_KIND


def explain(item: Any) -> tuple[str, str]:
    """One of pydantic's errors as (message, hint) in our words."""
    loc = [shortened(str(part)) for part in item["loc"]]
    kind = None
    if len(loc) > 2 and loc[0] == "features" and loc[2] in SPEC_OF_KIND:
        kind = loc.pop(2)  # pydantic names the union's branch; a recipe has no such key
    prefix, last = ".".join(loc[:-1]), loc[-1]
    key, given, context = ".".join(loc), item["input"], item.get("ctx", {})
    section = SPEC_OF_KIND[kind] if kind else section_at(loc[:-1])
    match item["type"]:
        case "extra_forbidden":
            close = registry.nearest(last, list(section.model_fields))
            full = ".".join(filter(None, (prefix, close)))
            known = ", ".join(f"`{name}`" for name in section.model_fields)
            return f"unknown key `{key}`", f"did you mean `{full}`?" if close else f"keys here: {known}"
        case "invalid_key":
            return f"key `{key}` must be text, got {shown(given)}", "put it in quotes"
        case "missing":
            return f"`{key}` is missing", f"add it, or leave `{prefix}` out"
        case "literal_error":
            choices = [part.strip(" '") for part in context["expected"].replace(" or ", ", ").split(",")]
            hint = registry.did_you_mean(shortened(str(given)), choices)
            return f"`{key}` must be one of {', '.join(choices)}, got {shown(given)}", hint
        case "union_tag_invalid":
            tag = shortened(str(context["tag"]))
            return f"`{key}.kind`: no feature kind `{tag}`", registry.did_you_mean(tag, list(SPEC_OF_KIND))
        case "union_tag_not_found":
            return f"`{key}.kind` is missing", "write one of " + ", ".join(f"`{name}`" for name in SPEC_OF_KIND)
        case "value_error":
            message, _, hint = str(context["error"]).partition("; ")
            return f"`{key}`: {message}", hint
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"`{key}` must be a mapping of keys, got {shown(given)}", "write its keys below it, or leave it out"
        case "float_type" | "int_type" | "bool_type" | "string_type":
            wanted = item["type"].split("_")[0]
            hint = registry.type_hint(given, wanted) or default_hint(section, last)
            return f"`{key}` must be {wanted}, got {shown(given)}", hint
    text = item["msg"].replace("Input should be", "must be")
    return f"`{key}` {text[0].lower()}{text[1:]}, got {shown(given)}", default_hint(section, last)


def default_hint(section: type[BaseModel], key: str) -> str:
    """A value that would do."""
    field = section.model_fields.get(key)
    if field is None or field.is_required() or field.default is None:
        return "mend it, or leave it out"
    return f"the default is `{field.default}`"


def section_at(loc: Sequence[str]) -> type[BaseModel]:
    """The section of the schema at a dotted place, through mappings by modality."""
    model: type[BaseModel] = Recipe
    parts = iter(loc)
    for part in parts:
        if part not in model.model_fields:
            break
        annotation: Any = model.model_fields[part].annotation
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
            next(parts, None)
        if get_origin(annotation) is UnionType:
            annotation = get_args(annotation)[0]
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return model

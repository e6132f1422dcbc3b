"""YAML of unknown origin: plain values only, bounded in size, depth, aliases and digits before any value is made.

`yaml.SafeLoader` runs no code, but a few hundred bytes of anchors can stand for billions of values, merge keys copy
them, deep nesting exhausts Python's stack, and one long number takes minutes to print.
"""

from copy import deepcopy
from functools import lru_cache
from typing import Any

import yaml

MAX_BYTES = 2**18  # of one text; the longest shipped recipe has 2 KB, and 256 KiB are read in seconds
MAX_DEPTH = 50  # of nesting; a recipe has 4
MAX_VALUES = 50_000  # an alias counts as all that it stands for
MAX_DIGITS = 40  # of one number
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Loader(yaml.SafeLoader):
    """Refuses deep nesting while it is read, as its own reading is recursive."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(None, None, f"nested deeper than {MAX_DEPTH}", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def parse_yaml(text: str) -> Any:
    """Plain YAML: no tags, no key twice in a mapping (the first would be lost silently), within the bounds above.

    Raises yaml.YAMLError, or ValueError for a date such as 2024-13-01.
    """
    return deepcopy(_parsed(text))


@lru_cache(maxsize=8)  # a command reads the recipe of its run several times
def _parsed(text: str) -> Any:
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise yaml.YAMLError(f"more than {MAX_BYTES:,} bytes")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _weigh(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _weigh(node: yaml.Node, seen: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """(values, depth) of a node with its aliases written out. Raises yaml.MarkedYAMLError for what is refused.

    seen: what is known of a node; None while it is looked at, so that an alias for it is inside of it.
    """
    if id(node) in seen:
        known = seen[id(node)]
        if known is None:
            raise _refused("an alias stands inside of what it stands for", node)
        return known
    if isinstance(node, yaml.ScalarNode):
        if node.tag in NUMBERS and len(node.value) > MAX_DIGITS:
            raise _refused(f"a number of more than {MAX_DIGITS} digits", node)
        if any("\ud800" <= char <= "\udfff" for char in node.value):
            raise _refused("half of a surrogate pair, which is no character", node)
        return 1, 0
    seen[id(node)] = None
    values, depth, keys = 1, 0, set[str]()
    for item in node.value:
        for part in item if isinstance(node, yaml.MappingNode) else (item,):
            more, deep = _weigh(part, seen)
            values, depth = values + more, max(depth, deep + 1)
        if isinstance(node, yaml.MappingNode) and isinstance(item[0], yaml.ScalarNode):
            if item[0].value in keys:
                raise _refused(f"key `{item[0].value}` stands there twice", item[0])
            keys.add(item[0].value)
    if depth > MAX_DEPTH:
        raise _refused(f"nested deeper than {MAX_DEPTH}", node)
    if values > MAX_VALUES:
        raise _refused(f"more than {MAX_VALUES:,} values, aliases written out", node)
    seen[id(node)] = values, depth
    return values, depth


def _refused(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, node.start_mark)

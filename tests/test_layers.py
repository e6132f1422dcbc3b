"""The arrows of the package point one way, and its few house rules hold; read from the source with `ast`."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mla_cli

PACKAGE = Path(mla_cli.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
IDS = [path.relative_to(PACKAGE).as_posix() for path in FILES]
LONGEST = 300  # lines; a longer file holds two ideas

# Lowest first; each may import its own level and those below.
LEVELS = (
    {
        "",
        "errors",
        "recipe",
        "bounded_yaml",
        "explain",
        "registry",
        "schema",
        "seeding",
        "files",
        "specs",
        "markup",
        "locks",
        "holders",
        "signals",
    },
    {"core", "data", "encoders"},
    {"methods", "datasets"},
    {"engine"},
    {
        "cli",
        "app",
        "commands",
        "costs",
        "options",
        "render",
        "wide",
        "matrix",
        "report",
        "diagnosis",
        "probing",
        "evaluation",
        "standings",
        "comparison",
        "overview",
        "ledger",
        "tables",
        "checking",
        "__main__",
    },
)


def module_of(path: Path, package: Path = PACKAGE) -> str:
    """`mla_cli/data/store.py` -> `data.store`; a package is named like its folder."""
    return ".".join(path.relative_to(package).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {module_of(path) for path in FILES}


def level_of(module: str) -> int:
    part = module.split(".")[0]
    return next(number for number, names in enumerate(LEVELS) if part in names)


def imported(source: str, module: str) -> Iterator[str]:
    """Every module of the package that a source imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import, line {node.lineno}"
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "mla_cli":
                target = name.removeprefix("mla_cli").lstrip(".")
                # `from mla_cli.data.store import Store` names something inside a module
                yield target if target in MODULES else target.rpartition(".")[0]


def calls(source: str, name: str) -> list[int]:
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [node.lineno for node in nodes if isinstance(node.func, ast.Name) and node.func.id == name]


GRAPH = {module_of(path): set(imported(path.read_text("utf-8"), module_of(path))) for path in FILES}


def test_the_reader_of_imports_sees_all_forms() -> None:
    source = """
import mla_cli.data.store as s
from mla_cli import registry, __version__
def f():
    from mla_cli.engine.run import Run
    import torch
"""
    assert set(imported(source, "x")) == {"data.store", "registry", "", "engine.run"}
    assert calls("def f():\n    print(1)\n    x.print(2)", "print") == [2]
    assert "data.store" in GRAPH["engine.prepare"]
    assert len(GRAPH) > 30


def test_every_module_has_a_level() -> None:
    for module in GRAPH:
        level_of(module)
    for level in LEVELS:
        for name in level - {""}:
            assert name in MODULES, f"`{name}` is in LEVELS and nowhere else"


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_no_import_points_upward(module: str) -> None:
    upward = [target for target in GRAPH[module] if level_of(target) > level_of(module)]
    assert not upward, f"mla_cli.{module} imports {upward}"


def test_no_module_imports_itself_through_others() -> None:
    try:
        TopologicalSorter({module: found - {""} for module, found in GRAPH.items()}).prepare()
    except CycleError as error:
        pytest.fail("imports go in a circle: " + " -> ".join(error.args[1]))


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_no_file_holds_two_ideas(path: Path) -> None:
    length = len(path.read_text("utf-8").splitlines())
    assert length <= LONGEST


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_only_render_prints_and_knows_rich(path: Path) -> None:
    source = path.read_text("utf-8")
    if module_of(path) == "render":
        return
    assert not calls(source, "print")
    for node in ast.walk(ast.parse(source)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not any(name.split(".")[0] == "rich" for name in names), node.lineno


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    assert not tree.body or ast.get_docstring(tree)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("mla_cli.cli", ("torch", "torchaudio", "torchvision", "av", "pandas", "pyarrow", "scipy", "matplotlib")),
        ("mla_cli.engine.evaluate", ("torch", "torchaudio", "torchvision", "av")),
        ("mla_cli.engine.compare, mla_cli.engine.diff, mla_cli.engine.status", ("torch", "matplotlib")),
        ("mla_cli.engine.check, mla_cli.checking", ("torch", "numpy", "pandas", "pyarrow", "pydantic")),
        ("mla_cli.engine.check_runs, mla_cli.engine.check_stores", ("torch", "matplotlib", "scipy")),
        ("mla_cli.data.missing", ("torch", "pandas")),
        ("mla_cli.core.fusion", ("torch", "pandas")),
        ("mla_cli.tables", ("torch", "PIL", "scipy", "mla_cli.engine.prepare", "mla_cli.engine.ablate")),
    ],
)
def test_light_modules_stay_light(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_data_sets_are_listed_without_torch() -> None:
    code = """if True:
        import sys
        from mla_cli import registry
        for name in registry.names("datasets"):
            registry.load("datasets", name)
        print(*sorted({"torch", "torchaudio", "av"} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

"""Every command, output and example of README.md is true.

Outputs stand in blocks marked `<!-- output: COMMAND -->`. Tests run the commands in an empty folder and compare what is
stable: words exactly, numbers within a tolerance, run hashes and sd not at all. To write today's outputs:

    python tests/test_readme.py --renew
"""

import contextlib
import doctest
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from command_line import mla

import mla_cli
from mla_cli.engine.presets import table1_grid
from mla_cli.recipe import load_recipe

README = Path(__file__).parents[1] / "README.md"
OUTPUT = re.compile(r"<!-- output: mla ([^\n]*) -->\n```text\n(.*?)```\n", re.DOTALL)
TABLE = re.compile(r"<!-- table: mla ([^\n]*) -->\n((?:\|[^\n]*\n)+)")
FIGURE = re.compile(r"!\[[^\]]*\]\(([^)]*)\)")
FILE = re.compile(r"<!-- file: ([^\n]*) -->\n```\w+\n(.*?)```\n", re.DOTALL)
POINTS = 10.0  # how far a shown percentage may be off on another machine
AUDIO_POINTS = 25.0  # `digits` has ten recordings a split: two of them, and macro-F1 moves by more
VIEWS = ("mor", "fou", "zer", "kar", "fac", "pix")
METHODS = ["mla", "late", "concat", "modality dropout"]  # rows of the preset `missing`
LONG = "ablate"  # this command takes minutes


def text() -> str:
    return README.read_text("utf-8")


def outputs() -> dict[str, str]:
    """Command -> output as shown."""
    return dict(OUTPUT.findall(text()))


def files() -> dict[str, str]:
    """Path -> content of the example files."""
    return dict(FILE.findall(text()))


def marked(name: str) -> str:
    """The shell block after the comment `name`."""
    found = re.search(rf"<!-- {name} -->\n```sh\n(.*?)```\n", text(), re.DOTALL)
    assert found, f"README.md has no block marked {name}"
    return found[1]


def stable(shown: str) -> list[str]:
    """Words and rules of an output without what changes: hashes, sd, bold, widths and the digits of percentages."""
    shown = re.sub(r"\b([\w-]+-s\d+-f\d+|ablate-\w+)-[0-9a-f]{8}\b", r"\1-HASH", shown)
    shown = re.sub(r" ± \d+\.\d", "", shown)
    shown = re.sub(r"[+-]?\b\d+\.\d\b(?!\d)", "N", shown)
    return [" ".join(line.split()) for line in re.sub(r"[━─]+", "─", shown).splitlines()]


def numbers(shown: str) -> list[float]:
    """The percentages of an output: numbers with one decimal, without sd."""
    return [float(found) for found in re.findall(r"(?<![\d.])[+-]?\d+\.\d\b(?!\d)", re.sub(r" ± \d+\.\d", "", shown))]


def check(command: str, tolerance: float = POINTS) -> None:
    """Run one command and compare with what README.md shows."""
    found, shown = mla(*shlex.split(command)), outputs()[command]
    assert found.code == 0, found.stderr
    assert stable(found.stdout) == stable(shown)
    for line, wanted in zip(found.stdout.splitlines(), shown.splitlines(), strict=True):
        allowed = AUDIO_POINTS if "│ audio" in line else tolerance
        assert numbers(line) == pytest.approx(numbers(wanted), abs=allowed), line


def test_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [command for command in outputs() if not command.startswith(LONG)]
    assert commands == ["prepare digits", "train --no-hgm", "eval --missing-rate 0.3"]
    for command in commands:
        assert f"```sh\nmla {command}\n```" in text(), "the command is shown as it is run"
        check(command)
    sessions = ("missing modalities", "the rivals", "statistics")
    for line in "".join(marked(f"session: {name}") for name in sessions).splitlines():
        words = shlex.split(line)[1:]
        output = mla(*words, *(["--smoke"] if words[0] == "train" else []))
        assert output.code == 0, output.stderr


@pytest.mark.slow
def test_the_long_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [command for command in outputs() if command.startswith(LONG)]
    assert commands == [LONG]
    check(LONG, tolerance=5.0)


def test_tables_stand_under_their_commands() -> None:
    found = {command: table for command, table in TABLE.findall(text()) if "missing" in command}
    assert list(found) == [f"ablate --preset missing --recipe {name}" for name in ("emoji", "mfeat")]
    for command, table in found.items():
        assert f"\nmla {command}\n" in marked_shell(), "the command is shown"
        assert [row.split("|")[1].strip() for row in table.splitlines()[2:]] == METHODS
        for column in zip(*(row.split("|")[2:-1] for row in table.splitlines()[2:]), strict=True):
            values = [float(re.findall(r"\d+\.\d", cell)[0]) for cell in column]
            assert "**" in column[values.index(max(values))], "the best is bold"
            assert sum("<u>" in cell for cell in column) >= 1, "the second is underlined"


def test_the_tables_of_methods_have_every_method() -> None:
    """Rows in the order of the preset, a column for each modality, and the best of every column in bold."""
    found = {command: table for command, table in TABLE.findall(text()) if "table1" in command}
    modalities = {"emoji": ["visual", "text"], "digits": ["audio", "visual"], "mfeat": list(VIEWS)}
    assert [command.split()[4] for command in found] == list(modalities)
    for name, table in zip(modalities, found.values(), strict=True):
        recipe = load_recipe(name, ["dataset.modalities=[" + ", ".join(modalities[name]) + "]"])
        wanted = ["unimodal", *(s.label for s in table1_grid(recipe, [0]).settings if "unimodal" not in s.label)]
        head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
        assert head == ["method", *modalities[name], "fused"]
        assert [row[0] for row in rows] == wanted
        for column in list(zip(*rows, strict=True))[1:]:
            values = [float(re.findall(r"\d+\.\d", cell)[0]) if cell else -1.0 for cell in column]
            assert any("**" in cell for cell, v in zip(column, values, strict=True) if v == max(values))


def test_figures_exist_and_are_images() -> None:
    shown = FIGURE.findall(text())
    kinds = ("missing_rate", "train_test_rates", "subsets")
    tables = [f"{name}_{kind}" for name in ("emoji", "mfeat") for kind in kinds]
    assert shown == [f".github/figures/{name}.png" for name in [*tables, "report"]]
    for path in shown:
        content = (README.parent / path).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) < 300_000


@pytest.mark.slow
def test_the_missing_table_of_mfeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """48 runs of a few seconds; the table of `emoji` is made by the same command, but takes ten minutes."""
    monkeypatch.chdir(tmp_path)
    command, table = next(found for found in TABLE.findall(text()) if found[0].endswith("missing --recipe mfeat"))
    found = mla(*shlex.split(command), "--format", "markdown")
    assert found.code == 0, found.stderr
    rows = [line for line in found.stdout.splitlines() if line.startswith("|")][: len(table.splitlines())]
    plain = [re.sub(r"\*\*|</?u>", "", "\n".join(lines)) for lines in (rows, table.splitlines())]
    assert stable(plain[0]) == stable(plain[1])
    assert numbers(plain[0]) == pytest.approx(numbers(plain[1]), abs=3.0)


def marked_shell() -> str:
    """All shell blocks."""
    return "\n".join("\n" + block for block in re.findall(r"```sh\n(.*?)```", text(), re.DOTALL))


def test_set_up_commands() -> None:
    assert marked("install") == "pip install . && mla ablate\n"
    assert marked("test") == "pip install '.[test]' && python -m pytest -q\n"


def test_every_command_shown_exists() -> None:
    """Commands in shell blocks and in the table of commands parse; names in capitals are placeholders."""
    import typer

    from mla_cli.cli import app

    root = typer.main.get_command(app)
    shown = re.findall(r"^mla (.*)$", "\n".join(re.findall(r"```sh\n(.*?)```", text(), re.DOTALL)), re.MULTILINE)
    shown += re.findall(r"`mla ([^`]*)`", text())
    assert len(shown) > 15
    for line in shown:
        name, *words = shlex.split(line, comments=True)
        command = root.commands[name]  # type: ignore[attr-defined]
        if words and words[0] in getattr(command, "commands", {}):
            command, words = command.commands[words[0]], words[1:]
        if words:
            command.make_context(name, words)


def test_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.csv").write_text(files()["my.csv"], "utf-8")
    for line in marked("session: own data").splitlines():
        output = mla(*shlex.split(line, comments=True)[1:])
        assert output.code == 0, output.stderr
    assert Path("mine.yaml").is_file()


def test_the_recipe_with_models_of_hugging_face_is_one() -> None:
    found = re.search(r"<!-- recipe: hf -->\n```yaml\n(.*?)```", text(), re.DOTALL)
    assert found
    recipe = load_recipe(None, base=yaml.safe_load(found[1]))
    assert [section.name for section in recipe.encoders.values()] == ["timm", "transformers", "transformers"]


def test_python_examples() -> None:
    examples = "".join(re.findall(r"```pycon\n(.*?)```", text(), re.DOTALL))
    test = doctest.DocTestParser().get_doctest(examples, {}, "README.md", "README.md", 0)
    assert len(test.examples) >= 8
    report: list[str] = []
    doctest.DocTestRunner().run(test, out=report.append)
    assert not report, "".join(report)


# Runs in a process of its own, in which the copy of the package comes first.
USE_THE_COPY = """
import sys
import numpy as np
import pandas as pd
from pathlib import Path
from PIL import Image
from command_line import mla
import mla_cli

assert Path(mla_cli.__file__).parents[1] == Path.cwd(), mla_cli.__file__
Path("raw/photos").mkdir(parents=True)
rows = [{"id": f"p{i}", "label": "dog" if i % 2 else "cat", "caption": f"photograph {i}"} for i in range(20)]
pd.DataFrame(rows).to_csv("raw/captions.csv", index=False)
draw = np.random.default_rng(0)
for row in rows:
    pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(f"raw/photos/{row['id']}.png")
for words in (
    "recipes",
    "prepare captions --root raw --workers 1",
    "train --recipe captions",
    "prepare mfeat --workers 1",
    "train --recipe mfeat_linear",
    "train --recipe mfeat_blocks",
):
    output = mla(*words.split())
    assert output.code == 0, output.stderr
    sys.stdout.write(output.stdout)
"""


def test_a_data_set_an_encoder_and_a_method_are_one_file_and_one_recipe(tmp_path: Path) -> None:
    """In a copy of the package, the example files are all that a user adds."""
    package = Path(mla_cli.__file__).parent
    hidden = shutil.ignore_patterns("__pycache__", "emoji", "digits")
    shutil.copytree(package, tmp_path / "mla_cli", ignore=hidden)
    inside = (tmp_path / "mla_cli/recipes").is_dir()  # so it is in an installed package
    if not inside:
        shutil.copytree(package.parent / "recipes", tmp_path / "recipes")
    added = {path: content for path, content in files().items() if path != "my.csv"}
    assert [Path(path).parent.name for path in added] == [
        "datasets", "recipes", "encoders", "recipes", "methods", "recipes"
    ]  # fmt: skip
    for path, content in added.items():
        place = tmp_path / ("mla_cli" if inside and path.startswith("recipes") else "") / path
        assert not place.exists(), f"{path} is there already: choose another example"
        place.write_text(content, "utf-8")
    search = os.pathsep.join([str(tmp_path), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", USE_THE_COPY],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": search, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for shown in (
        "  captions         Photographs with captions: visual (image), text (text); protocols random\n",
        "  linear           `linear`: one linear layer on the flattened input, initialised as PyTorch does. Keys: b",
        "  blocks           One modality at a time through one shared head, as MLA, but changing only after whole",
        "captions prepared data/captions: 20 samples (text 20, visual 20)\n",
        "mfeat_linear-mla-s0-f0-",
        "mfeat_blocks-blocks-s0-f0-",
    ):
        assert shown in done.stdout


# ---------------------------------------------------------------- writing


@contextlib.contextmanager
def empty_folder() -> Iterator[None]:
    """An empty current folder, removed afterwards."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="mla-readme-") as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def renew() -> None:
    """Run every command whose output is shown, and write the outputs into README.md."""

    def run(match: re.Match[str]) -> str:
        found = mla(*shlex.split(match[1]))
        if found.code:
            raise SystemExit(found.stderr)
        return f"<!-- output: mla {match[1]} -->\n```text\n{found.stdout.rstrip()}\n```\n"

    with empty_folder():
        new = OUTPUT.sub(run, text())
    README.write_text(new, "utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--renew"]:
        raise SystemExit("usage: python tests/test_readme.py --renew")
    renew()

"""The commands as a user types them: what goes to stdout, what to stderr, and what lies on disk afterwards."""

import csv
import io
import json
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
from command_line import mla

from mla_cli import __version__, registry
from mla_cli.cli import app
from mla_cli.engine import results
from mla_cli.engine.choose import choose_recipe
from mla_cli.errors import MlaError

README = Path(__file__).parents[2] / "README.md"


def commands(group: Any = None, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every command and group by its words."""
    group = group or typer.main.get_command(app)
    found = {path: group}
    for name, command in getattr(group, "commands", {}).items():
        found |= commands(command, (*path, name))
    return found


EVERY = commands()


# ---------------------------------------------------------------- help


def test_version() -> None:
    output = mla("--version")
    assert (output.code, output.stdout, output.stderr) == (0, f"mla {__version__}\n", "")


def test_the_commands_are_these() -> None:
    assert {" ".join(path) for path in EVERY} >= {"prepare", "train", "eval", "ablate", "recipes", "recipes copy"}


@pytest.mark.parametrize("path", EVERY, ids=lambda path: " ".join(path) or "mla")
def test_help_ends_with_an_example_that_parses(path: tuple[str, ...]) -> None:
    output = mla(*path, "--help")
    assert output.code == 0
    last = output.stdout.rstrip().splitlines()[-1].strip()
    start = "Example: " if path else "Start with: "
    assert last.startswith(start + " ".join(("mla", *path)))
    words = shlex.split(last.removeprefix(start))[1:]
    command = EVERY[path]
    context = None
    for place in [(), *(tuple(words[: i + 1]) for i in range(len(words)))]:
        if place not in EVERY:
            break
        command = EVERY[place]
        context = command.make_context(" ".join(place) or "mla", words[len(place) :], parent=context)
    assert context is not None


@pytest.mark.parametrize("path", [path for path in EVERY if path], ids=" ".join)
def test_every_command_is_in_the_readme(path: tuple[str, ...]) -> None:
    assert f"mla {' '.join(path)}" in README.read_text("utf-8")


def test_every_option_has_help() -> None:
    for path, command in EVERY.items():
        for parameter in command.params:
            assert getattr(parameter, "help", None), (path, parameter.name)


# ---------------------------------------------------------------- recipes


def test_recipes_lists_everything() -> None:
    output = mla("recipes")
    assert (output.code, output.stderr) == (0, "")
    for folder in ("datasets", "methods", "encoders"):
        for name in registry.names(folder):
            assert f"\n  {name} " in output.stdout
    for name in registry.recipe_paths():
        assert f"\n  {name} " in output.stdout
    assert "token_count" not in output.stdout


@pytest.mark.parametrize("name", registry.recipe_paths())
def test_recipes_copy_keeps_comments(folder: Path, name: str) -> None:
    output = mla("recipes", "copy", name, "copy.yaml")
    assert (output.code, output.stdout) == (0, "")
    assert output.stderr == "wrote copy.yaml; run it with: mla train --recipe copy.yaml\n"
    assert (folder / "copy.yaml").read_bytes() == registry.recipe_paths()[name].read_bytes()


def test_recipes_copy_overwrites_only_when_told(folder: Path) -> None:
    before = (folder / "mine.yaml").read_bytes()
    output = mla("recipes", "copy", "emoji", "mine.yaml")
    assert (output.code, output.stderr) == (
        1,
        "error: `mine.yaml` exists\nhint: choose another name, or pass `--force`\n",
    )
    assert (folder / "mine.yaml").read_bytes() == before
    assert mla("recipes", "copy", "emoji", "mine.yaml", "--force", "--quiet").stderr == ""
    assert (folder / "mine.yaml").read_bytes() != before
    assert mla("recipes", "copy", "emoji", "mine.txt").code == 1
    assert mla("recipes", "copy", "emojy", "new.yaml").stderr.startswith("error: no recipe named `emojy`\nhint: did")


# ---------------------------------------------------------------- prepare


def test_prepare_twice_says_there_is_nothing_to_do(folder: Path) -> None:
    first = mla("prepare", "digits", "--workers", 1)
    assert first.code == 0
    assert first.stdout.startswith("digits prepared data/digits: 3070 samples (audio 70, visual 3000)\n")
    assert "test pairs are drawn by class (pair_seed 0), distinct: 10 audio, 500 visual\n" in first.stdout
    assert "MARCO MENARDI" in first.stdout, "the licence asks that this notice be shown"
    assert first.stderr.startswith("scanning ")
    files = {file: file.stat().st_mtime_ns for file in (folder / "data/digits").rglob("*")}
    second = mla("prepare", "digits", "--quiet")
    assert (second.code, second.stderr) == (0, "")
    assert second.stdout.startswith("digits is prepared already, nothing to do: data/digits: 3070 samples")
    assert {file: file.stat().st_mtime_ns for file in (folder / "data/digits").rglob("*")} == files
    assert (folder / "data/.last").read_text("utf-8") == "digits\n"


@pytest.mark.parametrize(("option", "says"), [("--check", "0 problems"), ("--dry-run", "would be built at data/mfeat")])
def test_looking_builds_nothing(folder: Path, option: str, says: str) -> None:
    output = mla("prepare", "mfeat", option, "--quiet")
    assert (output.code, output.stderr) == (0, "")
    assert output.stdout.startswith("mfeat: 2000 samples under ")
    assert "  mor: 2000 present, float32 (6,) each, 0.0 MB in the store\n" in output.stdout
    assert says in output.stdout
    assert not (folder / "data").exists()


# ---------------------------------------------------------------- which recipe


def test_nothing_named_and_nothing_prepared_is_the_built_in_set(folder: Path) -> None:
    recipe, why = choose_recipe(None, Path("data"))
    assert recipe.store == "emoji"
    assert why.startswith("recipe emoji (nothing is prepared under data: the built-in data): data emoji, method mla")


def test_nothing_named_is_the_set_prepared_last(folder: Path, own_table: Path) -> None:
    recipe, why = choose_recipe(None, Path("data"))
    assert recipe.store == "my"
    assert why.startswith("no recipe for data/my: encoders chosen by kind (title: ngram_bag, note: ngram_bag): data my")
    mla("prepare", "mfeat", "--workers", 1)
    recipe, why = choose_recipe(None, Path("data"))
    assert recipe.store == "mfeat"
    mla("prepare", "table", "--table", "my.csv")  # a no-op, but the user's last word
    assert choose_recipe(None, Path("data"))[0].store == "my"


@pytest.mark.parametrize(
    ("variant", "flag", "expected"),
    [
        ("rls", None, "rls"),
        ("off", None, "off"),
        ("released", None, "released"),
        ("rls", False, "off"),
        ("released", False, "off"),
        ("rls", True, "rls"),
        ("released", True, "released"),
        ("off", True, "rls"),
    ],
)
def test_meaning_of_the_hgm_flag(folder: Path, variant: str, flag: bool | None, expected: str) -> None:
    recipe, why = choose_recipe("mine.yaml", Path("data"), [f"method.hgm={variant}"], hgm=flag)
    assert recipe.method.hgm == expected
    assert f"method mla hgm={expected}," in why


def test_flags_beat_set_beats_file(folder: Path) -> None:
    recipe, _ = choose_recipe("mine.yaml", Path("data"), ["seed=1", "train.epochs=7"], {"seed": 2})
    assert (recipe.seed, recipe.train.epochs, recipe.train.batch_size) == (2, 7, 32)


# ---------------------------------------------------------------- train


def test_train_prints_its_table_and_leaves_a_run(folder: Path, prepared: tuple[str, str]) -> None:
    output = mla("train", "--recipe", "mine.yaml", "--no-hgm", "--seed", 3, *prepared)
    assert output.code == 0
    said = output.stderr.splitlines()
    assert said[0] == (
        "recipe mine.yaml: data mfeat, method mla hgm=off, seed 3, 2 epochs, sgd lr 0.05, batch 32, select on val"
    )
    (run,) = Path("runs").glob("mine-mla-s3-f0-*")
    assert said[1] == f"{run}: training, 2 epochs of 3 rounds"
    assert [line[:11] for line in said[2:4]] == ["epoch   1/2", "epoch   2/2"]
    assert said[4:] == [f"{run}: finished"]
    assert output.stdout.startswith(f"{run.name} (%)\n")
    for name in ("mor", "fou", "fused"):
        assert f"│ {name} " in output.stdout
    assert "mfeat, protocol shipped, test n = 96, epoch chosen on val\n" in output.stdout
    assert (run / "results.md").read_text("utf-8").startswith(f"**{run.name} (%)**\n\n| output | val accuracy |")
    assert (Path("runs") / ".last").read_text("utf-8").strip() == run.name


def test_quiet_leaves_only_results(folder: Path, prepared: tuple[str, str]) -> None:
    output = mla("train", "--recipe", "mine.yaml", "--quiet", "--format", "csv", *prepared)
    assert (output.code, output.stderr) == (0, "")
    rows = pd.read_csv(io.StringIO(output.stdout))
    assert tuple(rows.columns) == results.COLUMNS
    (run,) = Path("runs").glob("mine-*")
    assert output.stdout == (run / "results.csv").read_text("utf-8")
    again = mla("eval", "--quiet")
    assert (again.code, again.stderr) == (0, "")


def test_resume_with_nothing_to_resume_starts(folder: Path, prepared: tuple[str, str]) -> None:
    output = mla("train", "--recipe", "mine.yaml", "--resume", *prepared)
    assert output.code == 0
    assert ": training, 2 epochs" in output.stderr


@pytest.mark.parametrize(
    ("line", "again"),
    [
        ("train --recipe mine.yaml --force", "mla train --recipe mine.yaml --resume"),
        ("ablate --set 'name=a b'", "mla ablate --set 'name=a b'"),
        ("prepare digits", "mla prepare digits"),
    ],
)
def test_an_interrupted_command_says_how_to_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, line: str, again: str
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    words = shlex.split(line)
    monkeypatch.setattr("sys.argv", ["mla", *words])
    monkeypatch.setattr("mla_cli.render.show", interrupted)
    output = mla(*words)
    assert (output.code, output.stdout) == (130, "")
    assert output.stderr.splitlines()[-1] == f"interrupted; what is finished is kept. To go on: {again}"


def test_smoke_runs_are_marked_and_refused(folder: Path, prepared: tuple[str, str]) -> None:
    output = mla("train", "--recipe", "mine.yaml", "--smoke", *prepared)
    assert output.code == 0
    assert ": training, 1 epoch of 2 rounds\n" in output.stderr
    assert "test n = 64, epoch chosen on val, SMOKE RUN: NOT A RESULT\n" in output.stdout
    assert mla("train", "--recipe", "mine.yaml", "--smoke", *prepared).code == 0, "a smoke run is no result to protect"
    rows = pd.read_csv(io.StringIO(mla("eval", "--format", "csv").stdout))
    assert rows["smoke"].all()
    with pytest.raises(MlaError, match="smoke run cannot enter a table"):
        results.over_seeds(rows.assign(setting="one"), by=["setting"])


# ---------------------------------------------------------------- eval


def test_eval_says_which_run_on_stderr_and_prints_tables_on_stdout(finished) -> None:
    output = mla("eval", *finished.places, "--missing-rate", "0", "--missing-rate", "0.3", "--mask-seeds", "0..3")
    assert (output.code, output.stderr) == (0, f"evaluating {finished.run}\n")
    assert f"{finished.run.name}: each modality alone (shared head), %\n" in output.stdout
    fused = [line.split("│") for line in output.stdout.splitlines() if line.startswith("│ entropy")]
    assert [[cell.strip() for cell in (row[3], row[4], row[7])] for row in fused[:2]] == [
        ["0", "0.000", "1"],
        ["0.3", "0.302", "4"],
    ]
    assert "±" not in fused[0][5], "one value has no spread"
    assert "±" in fused[1][5]
    assert "± is the sd over mask seeds of one training run\n" in output.stdout


def test_csv_and_json_are_the_same_tidy_unrounded_rows(finished) -> None:
    words = ("eval", finished.run, "--missing-rate", "0.25", "--mask-seeds", "0,1")
    rows = list(csv.DictReader(io.StringIO(mla(*words, "--format", "csv").stdout)))
    objects = json.loads(mla(*words, "--format", "json").stdout)
    assert tuple(rows[0]) == tuple(objects[0]) == results.COLUMNS
    assert len(rows) == len(objects) == 2 * 2 + 2 * 2  # two modalities, two mask seeds; accuracy and macro-F1
    for row, found in zip(rows, objects, strict=True):
        assert float(row["value"]) == found["value"]
        assert row["output"] == found["output"]
        assert {key for key, value in found.items() if value is None} == {k for k in row if row[k] == ""} - {
            key for key, value in found.items() if value == ""
        }
    accuracies = [row["value"] for row in objects if row["metric"] == "accuracy"]
    assert all(value == round(value * 96) / 96 for value in accuracies), "fractions of 96 samples, to the last bit"


def test_markdown_tables_are_apart(finished) -> None:
    text = mla("eval", finished.run, "--format", "markdown", "--quiet").stdout
    first, second = text.split("\n\n**")
    assert first.startswith(f"**{finished.run.name}: each modality alone")
    assert second.startswith(f"{finished.run.name}: fused, %**\n\n| fusion | missing rate |")


def test_fusion_rules_and_patterns(finished) -> None:
    output = mla(
        "eval", finished.run, "--fusion", "entropy", "--fusion", "uniform", "--fusion", "entropy_batch",
        "--fusion", "fixed", "--fusion-weights", "mor=0.3,fou=0.7", "--pattern", "subset", "--format", "csv",
    )  # fmt: skip
    assert output.code == 0
    assert "warning: `entropy_batch` scores a sample by the batch it happens to stand in" in output.stderr
    rows = pd.read_csv(io.StringIO(output.stdout))
    fused = rows[(rows["output"] == "fused") & (rows["metric"] == "accuracy")]
    assert set(fused["fusion"]) == {"entropy", "uniform", "entropy_batch", "fixed"}
    assert set(fused["missing_pattern"]) == {"subset:mor", "subset:fou", "subset:mor+fou"}
    alone = rows[(rows["output"] == "mor") & (rows["metric"] == "accuracy")]["value"].item()
    one = fused[(fused["missing_pattern"] == "subset:mor") & (fused["fusion"] == "uniform")]["value"].item()
    assert one == alone, "fused from mor alone is mor"


def test_eval_on_another_prepared_set(finished, data_dir: Path) -> None:
    own = mla("eval", finished.run, "--format", "csv")
    other = mla("eval", finished.run, "--dataset", "mfeat", "--format", "csv", *finished.places)
    assert other.code == 0, other.stderr
    fused = [pd.read_csv(io.StringIO(o.stdout)).query("output == 'fused'") for o in (own, other)]
    assert fused[0]["num_samples"].unique().tolist() == [96]
    assert fused[1]["num_samples"].unique().tolist() == [600], "the whole test split, without the run's limit"


# ---------------------------------------------------------------- ablate


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory, finished) -> tuple[Path, list[str]]:
    """A folder with the default grid of `mine.yaml`, cut to one epoch and two seeds, and its options."""
    folder = tmp_path_factory.mktemp("ablation")
    words = ["ablate", "--recipe", str(finished.recipe), "--set", "train.epochs=1", "--seeds", "0,1"]
    words += [*finished.places[:2], "--run-dir", str(folder), "--mask-seeds", "0,1", "--workers", "2"]
    return folder, words


def test_ablate_trains_the_grid_once(ablation: tuple[Path, list[str]]) -> None:
    folder, words = ablation
    output = mla(*words)
    assert output.code == 0, output.stderr
    (path,) = folder.glob("ablate-mine-*")
    assert f"written to {path}: missing_rate.png, missing_rate.svg, results.csv, results.md, settings.json\n" in (
        output.stderr
    )
    assert "12 runs, 0 finished already, 12 to do\n" in output.stderr
    alone, missing = output.stdout.split("\n\n")[:2]
    settings = ["MLA (HGM, DF)", "MLA without DF", "MLA without HGM", "MLA without HGM, DF", "concat", "late"]
    for table in (alone, missing):
        assert [s for s in settings if f"│ {s} " in table] == settings
    assert "│ unimodal mor " in alone
    assert "┃ fused - MLA (HGM, DF) ┃" in alone
    assert "± is the sd over training seeds; the difference is paired by seed" in alone
    assert " 0.1 ┃" in missing
    again = mla(*words, "--format", "csv")
    assert again.code == 0
    assert "12 runs, 12 finished already, 0 to do\n" in again.stderr
    assert again.stdout == (path / "results.csv").read_text("utf-8")
    assert tuple(pd.read_csv(io.StringIO(again.stdout)).columns) == results.COLUMNS
    assert (path / "missing_rate.png").read_bytes().startswith(b"\x89PNG")
    latest = mla("eval", "--run-dir", folder, "--quiet").stdout
    assert latest.startswith("mine-mla-s0-f0-"), "after an ablation `eval` takes the full method's first seed"


@pytest.mark.slow
def test_smoke_ablation_shows_no_numbers(finished, tmp_path: Path) -> None:
    output = mla(
        "ablate", "--recipe", finished.recipe, "--smoke", "--over", "method.hgm=off,rls", "--seeds", "0",
        *finished.places[:2], "--run-dir", tmp_path, "--workers", 2, "--logger", "csv", "--reference",
    )  # fmt: skip
    assert output.code == 0, output.stderr
    assert len(list(tmp_path.glob("mine-*/history.csv"))) == 2
    assert output.stderr.endswith(
        "no published numbers for mfeat in the reference ledger; it has cremad, food101, kinetics_sounds\n"
    )
    assert "smoke run: every setting ran; its numbers are no results" in output.stdout
    assert "hgm=off" in output.stdout
    assert "%" not in output.stdout

"""Every mistake a user can make: exit code 1, two lines on stderr, nothing on stdout; usage errors 2."""

import errno
import os
from pathlib import Path

import pytest
from command_line import mla

from mla_cli.errors import MlaError


def refused(*words: object) -> str:
    """The stderr of a command that must fail with an error of ours and print no result."""
    output = mla(*words)
    assert (output.code, output.stdout) == (1, ""), output
    return output.stderr


def write_recipe(text: str) -> None:
    Path("mine.yaml").write_text(text, "utf-8")


def test_unknown_recipe_key(folder: Path) -> None:
    write_recipe("train: {epocs: 5}")
    assert refused("train", "--recipe", "mine.yaml") == (
        "error: mine.yaml: unknown key `train.epocs`\nhint: did you mean `train.epochs`?\n"
    )


def test_number_read_as_text(folder: Path) -> None:
    write_recipe("train: {lr: 1e-3}")
    assert refused("train", "--recipe", "mine.yaml") == (
        "error: mine.yaml: `train.lr` must be float, got '1e-3'\n"
        "hint: YAML reads `1e-3` as text; write `0.001` or `1.0e-3`\n"
    )


@pytest.mark.parametrize("words", [("--set", "method.hgm=true"), ()])
def test_hgm_true(folder: Path, words: tuple[str, ...]) -> None:
    write_recipe("dataset: {name: mfeat}" if words else "method: {hgm: true}")
    where = "mine.yaml with --set" if words else "mine.yaml"
    assert refused("train", "--recipe", "mine.yaml", *words) == (
        f"error: {where}: `method.hgm`: `true` does not say which variant\n"
        "hint: write `rls`, `released`, `released_add` or `off`\n"
    )


def test_all_problems_of_a_recipe_at_once(folder: Path) -> None:
    write_recipe("train: {lr: 1e-3, epocs: 2}\nmethod: {name: mlaa}")
    stderr = refused("train", "--recipe", "mine.yaml")
    for part in ("`train.lr` must be float", "unknown key `train.epocs`", "no method named `mlaa`", "mean `mla`?"):
        assert part in stderr


def test_unknown_data_set_names_the_nearest(folder: Path) -> None:
    expected = "error: no dataset named `cremadd`\nhint: did you mean `cremad`?\n"
    assert refused("prepare", "cremadd") == expected
    write_recipe("dataset: {name: cremadd}")
    assert refused("train", "--recipe", "mine.yaml", "--quiet") == expected


def test_recipe_named_where_a_data_set_is_wanted(folder: Path) -> None:
    assert refused("prepare", "emoji_48") == (
        "error: no dataset named `emoji_48`\nhint: it is a recipe: run `mla prepare emoji --recipe emoji_48`\n"
    )


def test_unprepared_data_name_the_command(folder: Path) -> None:
    assert refused("train", "--recipe", "cremad_small", "--quiet") == (
        "error: `cremad` is not prepared under `data`\n"
        "hint: run `mla prepare cremad --recipe cremad_small --root RAW_FOLDER`\n"
    )


def test_raw_data_that_are_not_there_show_the_tree(folder: Path) -> None:
    stderr = refused("prepare", "cremad", "--quiet")
    assert stderr.startswith("error: no raw data for `cremad`: neither $MLA_RAW/cremad nor raw/cremad\nhint: pass")
    assert "AudioWAV/1001_DFA_ANG_XX.wav" in stderr
    assert "https://github.com/CheyneyComputerScience/CREMA-D" in stderr
    assert refused("prepare", "cremad", "--root", "nowhere", "--quiet").startswith(
        "error: `nowhere` is not a folder\nhint: "
    )


def test_class_that_a_split_lacks(folder: Path) -> None:
    rows = "".join(f"r{i},{'dog' if i else 'cat'},{'train' if i < 4 else 'test'},text {i}\n" for i in range(8))
    Path("my.csv").write_text(f"id,label,split,title\n{rows}", "utf-8")
    mla("prepare", "table", "--table", "my.csv", "--workers", 1)
    error, hint = refused("train", "--quiet", "--set", "train.epochs=1").splitlines()
    assert error.startswith("error: ")
    assert "`cat`" in error
    assert hint.startswith("hint: ")


def test_missing_rate_that_cannot_be_met(finished) -> None:
    assert refused("eval", finished.run, "--missing-rate", "0.9", "--quiet") == (
        "error: missing rate `0.9` cannot be met: it removes 173 of the 192 entries of split `test`, but each of its "
        "96 samples keeps one, so at most 96 can go (highest rate `0.5`)\n"
        "hint: use `0.5` or less, or pattern `bernoulli`, which takes any rate below 1\n"
    )


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--missing-rate", "1.5"), "error: missing rate `1.5` is not between 0 and 1"),
        (("--missing-rate", "much"), "error: `--missing-rate much` is not a number"),
        (("--missing-rate", "mor=0.5"), "hint: add `--pattern per_modality`"),
        (("--pattern", "kept"), "error: no missing pattern named `kept`\nhint: did you mean `kept_one`?"),
        (("--fusion", "entropi"), "error: no fusion rule named `entropi`\nhint: did you mean `entropy`?"),
        (("--fusion-weights", "mor:1"), "error: `--fusion-weights mor:1` is not NAME=WEIGHT,..."),
        (("--split", "train"), "error: no split named `train` to evaluate"),
        (("--mask-seeds", "1,1"), "error: `--mask-seeds 1,1` is not a list of different numbers"),
        (("--format", "xml"), "error: no output format named `xml`"),
        (("--dataset", "nope"), "error: no prepared data under"),
        (("--table", "nope.csv"), "error: no table `nope.csv`"),
    ],
)
def test_what_eval_cannot_do(finished, folder: Path, words: tuple[str, ...], error: str) -> None:
    stderr = refused("eval", finished.run, "--quiet", *words)
    assert error in stderr
    assert "\nhint: " in stderr


@pytest.mark.parametrize("number", [errno.EACCES, errno.ELOOP])
def test_no_access(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Simulated: nothing is denied to root, as whom tests may run."""

    def denied(run_dir: Path) -> None:
        raise OSError(number, os.strerror(number), str(run_dir / ".last"))

    monkeypatch.setattr("mla_cli.engine.latest.latest", denied)
    assert refused("eval", "--run-dir", "runs") == (
        f"error: no access to `runs/.last`: {os.strerror(number)}\n"
        "hint: mend its permissions, or choose another place\n"
    )
    with pytest.raises(OSError, match="last"):
        mla("eval", "--run-dir", "runs", "--debug")


def test_finished_run_is_not_repeated(finished) -> None:
    assert refused("train", "--recipe", finished.recipe, "--quiet", *finished.places) == (
        f"error: `{finished.run}` already holds a finished run of this recipe\n"
        f"hint: evaluate it with `mla eval {finished.run}`, or pass `--force`\n"
    )


def test_no_run_to_evaluate(folder: Path) -> None:
    assert refused("eval") == "error: no run to evaluate under `runs`\nhint: train one with `mla train`\n"
    assert refused("eval", "nope") == (
        "error: no run at `nope`\nhint: runs lie under `runs`; train one with `mla train`\n"
    )


def test_store_from_another_feature_spec(folder: Path, prepared: tuple[str, str]) -> None:
    write_recipe("dataset: {name: mfeat}\nfeatures: {mor: {kind: vector, width: 5}}")
    error, hint = refused("train", "--recipe", "mine.yaml", "--quiet", *prepared).splitlines()
    assert error.startswith("error: `")
    assert error.endswith("/mfeat` was prepared with another feature spec for `mor` (width=6)")
    assert hint.startswith("hint: ")
    assert "`mla prepare mfeat --recipe mine.yaml --data-dir " in hint


def test_folders_that_cannot_be_written(folder: Path, prepared: tuple[str, str]) -> None:
    """Nobody can make a folder below a file: unlike permissions, this stops root as well."""
    stderr = refused("prepare", "mfeat", "--data-dir", "mine.yaml/data", "--quiet", "--workers", 1)
    assert stderr.startswith("error: cannot write `mine.yaml/data/")
    assert stderr.endswith("hint: choose another place with --data-dir or --run-dir, or mend its permissions\n")
    stderr = refused("train", "--recipe", "mine.yaml", "--run-dir", "mine.yaml/runs", "--quiet", *prepared)
    assert stderr.startswith("error: cannot write `mine.yaml/runs/")


def test_text_that_is_not_utf8(folder: Path) -> None:
    Path("latin.csv").write_bytes("id,label,title\n1,a,café\n".encode("latin-1"))
    assert refused("prepare", "table", "--table", "latin.csv", "--quiet") == (
        "error: `latin.csv` is not UTF-8 (byte 22)\nhint: save the table as UTF-8\n"
    )
    Path("mine.yaml").write_bytes("name: café".encode("latin-1"))
    assert refused("train", "--recipe", "mine.yaml") == (
        "error: mine.yaml: not UTF-8 text (byte 9)\nhint: save the recipe as UTF-8\n"
    )


def test_table_options_belong_to_table(folder: Path) -> None:
    assert refused("prepare", "table").endswith("hint: add `--table my.csv`\n")
    assert refused("prepare", "mfeat", "--table", "x.csv").endswith("hint: run `mla prepare table --table FILE`\n")


@pytest.mark.parametrize(
    "words", [("train", "--sed", "3"), ("frobnicate",), ("prepare",), ("train", "--seed", "-1"), ()]
)
def test_usage_errors_exit_2(folder: Path, words: tuple[str, ...]) -> None:
    assert mla(*words).code == 2


def test_subsets_take_no_rate(finished) -> None:
    output = mla("eval", finished.run, "--pattern", "subset", "--missing-rate", "0.3")
    assert (output.code, output.stdout) == (2, "")
    assert "takes no rate" in output.stderr


def test_debug_keeps_the_traceback(folder: Path) -> None:
    with pytest.raises(MlaError, match="no dataset named `cremadd`"):
        mla("prepare", "cremadd", "--debug")

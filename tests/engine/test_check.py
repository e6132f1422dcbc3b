"""`mla check` on files: every damage is named, by `check` and by whatever reads the file; nothing is ever changed."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Output, mla
from tiny import events_and_value, finish, mfeat_recipe, trained, unsealed

from mla_cli.data.store import Store
from mla_cli.engine.check import check
from mla_cli.engine.events import Epoch, Note, Progress
from mla_cli.engine.findings import OK, PROBLEM, WARNING, Finding
from mla_cli.engine.integrity import changed_since
from mla_cli.engine.run import Run
from mla_cli.engine.train import train
from mla_cli.errors import MlaError
from mla_cli.files import read_json, write_json, write_sealed
from mla_cli.holders import note_of, this_process
from mla_cli.locks import FolderLock
from mla_cli.tables import write_markdown

FROZEN = {"encoders": {"mor": {"name": "mlp", "hidden": 12, "frozen": True}}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, data_dir: Path, mfeat_store: Store) -> Path:
    """`data/mfeat` with features of a frozen encoder and `runs` with a run that has every kind of file."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(mfeat_store.path, folder / "data" / "mfeat")
    recipe = mfeat_recipe(train={"epochs": 1, "missing_rate": 0.2}, **FROZEN)
    write_markdown(trained(recipe, folder / "data", folder / "runs"))
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to damage, as the current folder."""
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    Run(only_run()).update(data_dir="data")
    return tmp_path / "copy"


def only_run() -> Path:
    (path,) = Path("runs").glob("tiny-*")
    return path


def looked(path: str | Path) -> list[Finding]:
    found: list[Finding] = finish(check(str(path), Path("data"), Path("runs")))
    return found


def problems(path: str | Path) -> dict[str, Finding]:
    return {finding.item: finding for finding in looked(path) if finding.state == PROBLEM}


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path: Path, place: int | None = None) -> bytes:
    """Change one byte in the middle of a file; its content before."""
    whole = path.read_bytes()
    place = len(whole) // 2 if place is None else place
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    return whole


# ---------------------------------------------------------------- damage


def test_all_is_whole(copy: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files_below(copy)}
    events, found = events_and_value(check("runs", Path("data"), Path("runs")))
    (run,) = found
    assert run.state == OK and run.found.startswith("finished; ")
    assert any(isinstance(event, Progress) for event in events)
    kinds = {path.suffix for path in files_below(Path("runs"))} - {""}
    assert kinds == {".yaml", ".json", ".jsonl", ".parquet", ".csv", ".md", ".safetensors"}
    (store,) = looked("data")
    assert store.state == OK and "2000 samples" in store.found
    assert any(path.parent.parent.name == "frozen" for path in files_below(Path("data")))
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files_below(copy)} == before


def test_one_flipped_byte_in_any_file_is_named(copy: Path) -> None:
    count = 0
    for folder in (only_run(), Path("data/mfeat")):
        for path in files_below(folder):
            whole = flip(path)
            found = problems(folder)
            assert str(path) in found, path
            assert found[str(path)].mend
            path.write_bytes(whole)
            count += 1
        assert problems(folder) == {}
    assert count > 20


def test_a_missing_file_is_named(copy: Path) -> None:
    for folder in (only_run(), Path("data/mfeat")):
        for path in files_below(folder):
            content = path.read_bytes()
            path.unlink()
            named = {finding.item: finding.state for finding in looked(folder) if finding.state != OK}
            if path.name == "manifest.json" and path.parent != folder:  # computed again by the next run
                assert named == {str(path.parent): WARNING}
            else:
                assert named.get(str(path)) == PROBLEM or path.name == "leakage.json", (path, named)
            path.write_bytes(content)


def test_the_command_names_it_and_says_how_to_mend_it(copy: Path) -> None:
    shard = Path("data/mfeat/mor/00000.npy")
    flip(shard)
    found = mla("check", "mfeat")
    assert found.code == 1
    assert f"{shard}: to mend it: mla prepare mfeat --force" in found.stdout
    assert found.stdout.splitlines()[-1] == "1 problem, 0 warnings"
    rows = json.loads(mla("check", "mfeat", "--format", "json").stdout)
    assert [row["item"] for row in rows] == [str(shard)]
    assert mla("check", "mfeat", "--format", "csv").stdout.startswith(
        "part,item,state,found,mend\nstore,data/mfeat/mor/"
    )
    assert "| data/mfeat/mor/00000.npy | problem |" in mla("check", "mfeat", "--format", "markdown").stdout


# ---------------------------------------------------------------- the same through what reads the files


def failed(found: Output, path: Path | str) -> None:
    assert (found.code, found.stdout) == (1, ""), found
    assert str(path) in found.stderr.replace("./", "")
    assert "hint: " in found.stderr and "Traceback" not in found.stderr


@pytest.mark.parametrize("name", ["run.json", "predictions.parquet", "recipe.yaml"])
def test_eval_refuses_what_is_damaged(copy: Path, name: str) -> None:
    path = only_run() / name
    at = path.read_bytes().index(b"lr: 0.05") + 5 if name == "recipe.yaml" else None
    flip(path, at)
    failed(mla("eval", path.parent), path)


def test_other_readers_refuse_it_too(copy: Path) -> None:
    run = only_run()
    for name, words in (
        ("history.jsonl", ["eval", run, "--diagnostics"]),
        ("results.csv", ["diff", run, run]),
        ("checkpoints/best.json", ["eval", run, "--dataset", "mfeat"]),
        ("checkpoints/best-e0001-r000000.safetensors", ["eval", run, "--dataset", "mfeat"]),
        ("checkpoints/frozen.safetensors", ["eval", run, "--dataset", "mfeat"]),
    ):
        whole = flip(run / name)
        failed(mla(*words), run / name)
        (run / name).write_bytes(whole)
    for name in ("manifest.json", "index.parquet"):
        path = Path("data/mfeat") / name
        whole = flip(path)
        failed(mla("eval", run, "--dataset", "mfeat"), path)
        failed(mla("train", "--recipe", run / "recipe.yaml", "--force"), path)
        path.write_bytes(whole)
    flip(run / "results.csv")
    assert "damaged" in mla("status").stdout


def test_resuming_refuses_a_damaged_checkpoint(data_dir: Path, mfeat_store: Store, tmp_path: Path) -> None:
    steps = train(mfeat_recipe(), data_dir, tmp_path, "cpu")
    next(event for event in steps if isinstance(event, Epoch))
    steps.close()
    (run,) = [Run(path) for path in tmp_path.glob("tiny-*")]
    for path in (*run.path.glob("checkpoints/last*"), run.path / "run.json"):
        whole = flip(path)
        with pytest.raises(MlaError) as error:
            finish(train(mfeat_recipe(), data_dir, tmp_path, "cpu", resume=True))
        assert str(path) in error.value.message
        assert "--force" in error.value.hint
        path.write_bytes(whole)
        if path.name != "run.json":
            run.update(state="running")
    assert trained(mfeat_recipe(), data_dir, tmp_path, resume=True).state == "finished"


def test_comments_in_a_recipe_change_nothing(copy: Path) -> None:
    path = only_run() / "recipe.yaml"
    path.write_text("# my best run\n" + path.read_text())
    assert mla("eval", path.parent).code == 0
    found = problems(path.parent)[str(path)]
    assert "was edited" in found.found  # it is not what was written, all the same
    assert found.mend == "nothing: only its layout or comments differ"
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    output = mla("eval", path.parent)
    assert output.code == 1
    assert f"error: `{path}` was edited after the run: it is not what was trained" in output.stderr
    assert f"mla train --recipe {path} --run-dir runs" in output.stderr
    assert problems(path.parent)[str(path)].mend in output.stderr  # trained again it is another run
    path.write_text("{")
    assert problems(path.parent)[str(path)].mend == "put it back: it cannot be read any more"


# ---------------------------------------------------------------- changed since


def test_what_has_changed_since_training_is_named(copy: Path) -> None:
    run = Run(only_run())
    assert changed_since(run, Path("data")) == []
    assert changed_since(run, Path("nowhere")) == []  # its own folder of data is still there
    run.update(versions=run.info()["versions"] | {"torch": "2.0.0", "gone-package": "1"})
    manifest = read_json(Path("data/mfeat/manifest.json"))
    classes = [*manifest["classes"][:3], "drei", *manifest["classes"][4:]]
    write_sealed(Path("data/mfeat/manifest.json"), manifest | {"fingerprint": "0" * 64, "classes": classes})
    packages, data, named = changed_since(run, Path("data"))
    assert "torch 2.0.0 -> " in packages and "gone-package 1 -> not installed" in packages
    assert data.startswith("`data/mfeat` is not what `runs/tiny-") and "(fingerprint 00000000, then " in data
    assert "class 3 is `drei`, was `3` (10 classes, then 10)" in named
    found = mla("eval", run.path)
    assert found.code == 0
    assert found.stderr.count("warning: ") == 3
    (_, *warnings) = looked(run.path)
    assert [finding.state for finding in warnings] == [WARNING] * 3
    assert mla("check", run.path).code == 0  # nothing is broken
    write_sealed(Path("data/mfeat/manifest.json"), manifest | {"fingerprint": "0" * 64, "classes": classes[:-1]})
    assert "class 3 is `drei`, was `3` (9 classes, then 10)" in changed_since(run, Path("data"))[2]


def test_resuming_on_other_data_or_another_recipe_is_told(copy: Path) -> None:
    recipe = mfeat_recipe(seed=5)
    steps = train(recipe, Path("data"), Path("runs"), "cpu")
    next(event for event in steps if isinstance(event, Epoch))
    steps.close()
    (begun,) = Path("runs").glob("tiny-mla-s5-*")
    run = Run(begun)

    def notes() -> list[str]:
        steps = train(recipe, Path("data"), Path("runs"), "cpu", resume=True)
        found = []
        for event in steps:
            if isinstance(event, Note):
                found.append(event.text)
            if isinstance(event, Epoch):
                break
        steps.close()
        return found

    run.update(versions=run.info()["versions"] | {"torch": "2.0.0"})
    assert any("packages have changed since" in text and "torch 2.0.0 -> " in text for text in notes())
    write_json(begun / "run.json", run.info() | {"data_fingerprint": "another"})
    begun.rename(begun.with_name("tiny-mla-s5-f0-00000000"))
    told = "`runs/tiny-mla-s5-f0-00000000` was begun on other data"
    assert any(text.startswith(told) for text in notes())


def test_files_of_earlier_versions_still_open(copy: Path) -> None:
    run = only_run()
    for folder in (run, Path("data/mfeat")):
        unsealed(folder)
    for file in run.glob("checkpoints/*.json"):
        values = read_json(file)
        write_json(file, {key: values[key] for key in values if key not in ("seal", "tensors_sha256")})
    found = looked(run)
    assert {finding.state for finding in found} == {OK, WARNING}
    assert any("without checksum" in finding.found for finding in found)
    assert [finding.state for finding in looked("data")] == [OK]
    assert mla("eval", run, "--dataset", "mfeat").code == 0
    Path("data/mfeat/classes.txt").write_text("x\n")
    assert "is not the class list" in problems("data")["data/mfeat/classes.txt"].found


# ---------------------------------------------------------------- what is not finished


def test_runs_that_are_not_finished(copy: Path) -> None:
    run = Run(only_run())
    run.update(state="running")
    with run.hold():
        (found,) = looked(run.path)
        assert found.state == OK and found.found.startswith(f"is being trained (process {os.getpid()} on ")
        refused = mla("eval", run.path)
        assert refused.code == 1 and "is being trained by another process (process" in refused.stderr
    warning = looked(run.path)[-1]
    assert (warning.state, warning.found) == (WARNING, "was interrupted")
    assert "--resume" in warning.mend
    run.update(state="failed", error="loss is nan")
    assert looked(run.path)[-1].found == "failed: loss is nan"
    (run.path / ".history.jsonl.7.tmp").touch()
    assert any("half-written" in finding.found for finding in looked(run.path))
    with open(run.path / "history.jsonl", "a") as lines:
        lines.write("junk\n")
    run.update(files={})
    assert "history.jsonl:2" in problems(run.path)[str(run.path / "history.jsonl")].found


def test_a_half_built_set(copy: Path) -> None:
    partial = Path("data/.mfeat-0123456789ab.partial")
    shutil.copytree("data/mfeat/mor", partial / "mor")
    digests = read_json(Path("data/mfeat/manifest.json"))["modalities"]["mor"]["sha256"]
    write_json(partial / "mor" / "00000.json", {"sha256": digests[0], "rows": []})
    with FolderLock(partial) as lock:
        assert lock.taken()
        assert "is being built (process " in looked(partial)[0].found
    (warning,) = looked(partial)
    assert (warning.state, warning.found) == (WARNING, "half-built: 1 shards are made")
    assert warning.mend == "go on with `mla prepare mfeat`, or remove it"
    flip(partial / "mor" / "00000.npy")
    assert "remove `" in problems(partial)[str(partial / "mor" / "00000.npy")].mend


def test_locks_that_were_left_behind(copy: Path) -> None:
    note = note_of(only_run())
    for holder, state in (
        (this_process(), OK),
        (replace(this_process(), pid=2**22 + 1), OK),
        (replace(this_process(), host="node7", boot="another"), WARNING),
    ):
        note.write_text(json.dumps(holder.__dict__))
        (found,) = [finding for finding in looked("runs") if finding.part == "lock"]
        assert found.state == state
    assert found.mend == f"if it has ended there: rm {note}"
    note.write_bytes(b"")
    assert [finding.state for finding in looked("runs") if finding.part == "lock"] == [WARNING]


# ---------------------------------------------------------------- ablations, recipes, folders


@pytest.mark.slow
def test_what_mends_a_set(copy: Path) -> None:
    flip(Path("data/mfeat/mor/00000.npy"))
    assert problems("data")["data/mfeat/mor/00000.npy"].mend == "mla prepare mfeat --force"
    assert mla("prepare", "mfeat", "--force", "--workers", 1).code == 0
    assert problems("data") == {}


@pytest.mark.slow
def test_an_ablation(copy: Path, in_process: list[str]) -> None:
    words = ["--over", "train.lr=0.05", "--seeds", "0", "--set", "train.missing_rate=0.0", "--workers", 1]
    assert mla("ablate", "--recipe", only_run() / "recipe.yaml", *words).code == 0
    (folder,) = Path("runs").glob("ablate-*")
    assert problems(folder) == {}
    assert "an ablation of 1 runs" in looked(folder)[0].found
    for name in ("settings.json", "results.csv"):
        whole = flip(folder / name)
        assert set(problems("runs")) == {str(folder / name)}
        (folder / name).write_bytes(whole)
    flip(folder / "settings.json")
    failed(mla("report", folder, "--out", "x.html"), folder / "settings.json")


def test_a_recipe_file(copy: Path) -> None:
    path = only_run() / "recipe.yaml"
    (found,) = looked(path)
    assert (found.part, found.state) == ("recipe", OK)
    Path("bad.yaml").write_text("train: {epocs: 3}\n")
    output = mla("check", "bad.yaml")
    assert output.code == 1 and "train.epocs" in output.stdout


def test_a_file_of_a_run_or_set_stands_for_the_whole(copy: Path) -> None:
    run = only_run()
    for file in (run / "run.json", run / "history.jsonl", run / "checkpoints" / "last.json"):
        assert looked(file) == looked(run)
    for file in (Path("data/mfeat/manifest.json"), Path("data/mfeat/mor/00000.npy")):
        assert looked(file) == looked("data/mfeat")
    flip(run / "predictions.parquet")
    assert list(problems(run / "run.json")) == [str(run / "predictions.parquet")]


def test_a_path_of_nothing(copy: Path) -> None:
    output = mla("check", "nothing")
    assert (output.code, output.stdout) == (1, "")
    assert "error: nothing to check at `nothing`" in output.stderr
    Path("empty").mkdir()
    output = mla("check", "empty")
    assert output.code == 0
    assert "nothing of mla at empty" in output.stderr


def test_a_folder_that_cannot_be_read_is_a_problem(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: nothing is denied to root, as whom tests may run."""
    shut, real = Path("runs/shut"), os.scandir
    shut.mkdir()

    def scandir(path: Any) -> Any:
        if path == str(shut):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    (found,) = problems("runs").values()
    assert (found.part, found.item, found.found) == ("folder", str(shut), "cannot be read: Permission denied")
    assert len(looked("runs")) == 2  # the run beside it is checked all the same
    assert mla("check", "runs").code == 1


def test_links_are_not_followed(copy: Path) -> None:
    os.symlink("..", "runs/loop")
    assert len(looked("runs")) == 1


@pytest.mark.parametrize(
    "content", [{}, {"format": 1}, {"format": 1, "dataset": "mfeat", "modalities": {"mor": 3}}, []]
)
def test_a_manifest_that_is_none(copy: Path, content: Any) -> None:
    write_json(Path("data/mfeat/manifest.json"), content)
    assert any("manifest.json" in item or "leakage" in item for item in problems("data"))

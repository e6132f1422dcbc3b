"""What `mla status` finds: alive or interrupted, damaged of every kind, and never a change on disk."""

import json
import os
import platform
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from mla_cli.engine.status import status
from mla_cli.holders import note_of, this_process
from mla_cli.locks import FolderLock
from mla_cli.overview import status_tables

RECIPE = "name: tiny\ndataset: {name: mfeat}\ntrain: {epochs: 7}\n"
RESULTS = "split,output,metric,value\nval,fused,accuracy,0.5\ntest,fused,accuracy,0.25\ntest,mor,accuracy,0.1\n"


def write(folder: Path, files: dict[str, Any]) -> Path:
    """A folder with these files; mappings as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return folder


def history(epochs: int) -> str:
    return "".join(json.dumps({"epoch": e + 1}) + "\n" for e in range(epochs))


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_every_state_and_the_command_that_goes_on(tmp_path: Path) -> None:
    runs, here = tmp_path / "my runs", platform.node()
    common = {"recipe.yaml": RECIPE, "history.jsonl": history(3)}
    running = {"state": "running", "host": here, "epochs": 9, "data_dir": "data"}
    write(runs / "done", {**common, "run.json": {"state": "finished"}, "results.csv": RESULTS})
    write(runs / "alive", {**common, "run.json": {**running, "pid": os.getpid()}})
    write(runs / "left", {**common, "run.json": {**running, "pid": os.getpid()}})
    write(runs / "cut", {**common, "run.json": {**running, "pid": 2**22 + 1, "data_dir": "d"}})
    write(runs / "away", {**common, "run.json": {**running, "pid": 1, "host": "another"}})
    write(runs / "bad", {**common, "run.json": {"state": "failed", "error": "loss is nan"}})
    write(runs / "deep/er/claimed/checkpoints", {})
    write(runs / "deep/er/claimed", {"recipe.yaml": RECIPE})
    write(runs / "ablate-x", {"settings.json": {"runs": []}})
    write(runs / "taken", {**common, "run.json": {**running, "pid": 1}})
    note_of(runs / "taken").write_text(json.dumps(asdict(replace(this_process(), host="node7", boot="another"))))
    lock = FolderLock(runs / "alive")
    assert lock.taken()
    before = snapshot(tmp_path)
    with lock:
        found = status(runs, tmp_path / "none")
        assert snapshot(tmp_path) == before
    assert found.stores == []
    by_name = {run.run: run for run in found.runs}
    assert [(r.run, r.state) for r in found.runs] == [
        ("done", "finished"), ("alive", "running"), ("away", "running elsewhere"), ("taken", "running elsewhere"),
        ("cut", "interrupted"), ("deep/er/claimed", "interrupted"), ("left", "interrupted"), ("bad", "failed"),
    ]  # fmt: skip
    assert (by_name["done"].val, by_name["done"].test, by_name["done"].command) == (0.5, 0.25, "")
    assert [(r.epoch, r.epochs) for r in found.runs] == [(3, 3), (3, 9), (3, 9), (3, 9), (3, 9), (0, 7), (3, 9), (3, 7)]
    assert by_name["alive"].command == by_name["away"].command == by_name["taken"].command == ""
    assert by_name["alive"].note.startswith(f"process {os.getpid()} on {here} since ")
    assert by_name["taken"].note.startswith(f"process {os.getpid()} on node7 since ")
    start = f"mla train --recipe '{runs}/cut/recipe.yaml' --run-dir '{runs}' "
    assert by_name["cut"].command == start + "--data-dir d --resume"
    assert by_name["deep/er/claimed"].command.endswith(f"--run-dir '{runs}/deep/er' --resume")
    assert by_name["bad"].note == "loss is nan"
    assert all(0 <= run.age < 60 for run in found.runs)


def test_a_smoke_run_is_called_one(tmp_path: Path) -> None:
    lines = [f"{line},{'smoke' if not i else 'True'}" for i, line in enumerate(RESULTS.splitlines())]
    files = {"recipe.yaml": RECIPE, "run.json": {"state": "finished"}}
    write(tmp_path / "runs/short", {**files, "results.csv": "\n".join(lines)})
    write(tmp_path / "runs/whole", {**files, "results.csv": RESULTS})
    found = status(tmp_path / "runs", tmp_path / "none")
    assert [(run.run, run.note) for run in found.runs] == [
        ("short", "a smoke run, its numbers mean nothing"),
        ("whole", ""),
    ]


@pytest.mark.parametrize(
    "files",
    [
        {"run.json": "{"},
        {"run.json": "[]"},
        {"run.json": "\udcff"},
        {"run.json": {"state": "sleeping"}},
        {"run.json": {"state": ["finished"]}},
        {"run.json": {"state": "finished"}},
        {"run.json": {"state": "finished"}, "results.csv": "a,b\n1,2\n"},
        {"run.json": {"state": "finished"}, "results.csv": RESULTS.replace("0.5", "half")},
        {"run.json": {"state": "failed"}, "history.jsonl": "not a line\n"},
        {"run.json": {"state": "failed"}},
        {"run.json": {"state": "failed"}, "recipe.yaml": "train: {epocs: 3}"},
    ],
    ids=str,
)
def test_a_damaged_run_is_listed_as_damaged(files: dict[str, Any], tmp_path: Path) -> None:
    for name, content in files.items():
        if content == "\udcff":
            (tmp_path / "runs/one").mkdir(parents=True)
            (tmp_path / "runs/one" / name).write_bytes(b"\xff\xfe{")
            files = {}
    write(tmp_path / "runs/one", files)
    (one,) = status(tmp_path / "runs", tmp_path).runs
    assert one.state == "damaged" and one.note
    has_recipe = (tmp_path / "runs/one/recipe.yaml").exists()
    assert one.command.endswith("--force") if has_recipe else one.command == ""


def test_a_smoke_run_is_told_from_a_result(tmp_path: Path) -> None:
    head, *rows = RESULTS.splitlines()
    smoke = "\n".join([f"{head},smoke", *(f"{row},True" for row in rows)])
    for name, results in (("real", RESULTS), ("tried", smoke)):
        files = {"run.json": {"state": "finished"}, "results.csv": results}
        write(tmp_path / name, {"recipe.yaml": RECIPE, "history.jsonl": history(1), **files})
    found = status(tmp_path, tmp_path / "none")
    assert [(run.run, run.note) for run in found.runs] == [
        ("real", ""),
        ("tried", "a smoke run, its numbers mean nothing"),
    ]
    assert status_tables(found)[0].notes == ["tried finished: a smoke run, its numbers mean nothing"]


def test_prepared_half_built_and_damaged_sets(tmp_path: Path, mfeat_store: Any) -> None:
    data = tmp_path / "data"
    shutil.copytree(mfeat_store.path, data / "mfeat")
    write(data / "odd", {"manifest.json": {"dataset": "odd"}})
    write(
        data / ".cremad-0123456789ab.partial", {"audio/00000.json": {}, "audio/00001.json": {}, "audio/00001.npy": "x"}
    )
    write(data / ".my-set-0123456789ab.partial", {})
    write(data / ".emoji.old", {"manifest.json": {}})
    write(data / "somebody's", {"notes.txt": "x"})
    lock = FolderLock(data / ".my-set-0123456789ab.partial")
    assert lock.taken()
    before = snapshot(data)
    with lock:
        stores = status(tmp_path, data).stores
        assert snapshot(data) == before
    found = {store.store: store for store in stores}
    assert [(s.store, s.state) for s in stores] == [
        ("mfeat", "prepared"), ("cremad", "half-built"), ("emoji", "replaced"), ("my-set", "being built"),
        ("odd", "damaged"),
    ]  # fmt: skip
    mfeat = found["mfeat"]
    assert (mfeat.dataset, mfeat.samples, mfeat.fingerprint) == ("mfeat", 2000, mfeat_store.fingerprint)
    assert mfeat.bytes == sum(path.stat().st_size for path in (data / "mfeat").rglob("*") if path.is_file())
    assert (found["cremad"].shards, found["cremad"].command) == (2, f"mla prepare cremad --data-dir {data}")
    assert found["my-set"].command == ""
    assert status(tmp_path, data).stores[3].command.startswith("mla prepare table --table TABLE --name my-set")
    assert found["odd"].command == f"mla prepare table --table TABLE --name odd --data-dir {data} --force"


def test_nothing_there_is_no_error(tmp_path: Path) -> None:
    found = status(tmp_path / "runs", tmp_path / "data")
    assert (found.runs, found.stores) == ([], [])
    assert list(tmp_path.iterdir()) == []

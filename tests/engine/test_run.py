import json
import os
from pathlib import Path

import pytest
import torch

from mla_cli.engine.latest import find_run, latest, remember
from mla_cli.engine.packages import PACKAGES, packages_of, versions
from mla_cli.engine.run import Run, run_name
from mla_cli.errors import MlaError
from mla_cli.recipe import load_recipe, recipe_hash, validate

RECIPE = validate({"name": "emoji", "seed": 3, "dataset": {"fold": 2}}, "test")


def claimed(folder: Path, **how: bool) -> tuple[Run, bool]:
    run = Run(folder / run_name(RECIPE, "data"))
    options = {"resume": False, "force": False} | how
    return run, run.claim(RECIPE, "data", {"device": "cpu"}, **options)


def checkpoint(run: Run, epoch: int = 1, number: int = 0, which: str = "last", value: float = 0.5) -> None:
    run.save_checkpoint(which, {"w": torch.full((2, 2), value)}, {"epoch": epoch, "round": number})


# ---------------------------------------------------------------- claim


def test_the_name_says_recipe_method_seed_fold_and_hash() -> None:
    assert run_name(RECIPE, "data") == f"emoji-mla-s3-f2-{recipe_hash(RECIPE, 'data')[:8]}"
    assert run_name(RECIPE, "data") != run_name(RECIPE, "other data")


def test_a_new_run_is_claimed(tmp_path: Path) -> None:
    assert Run(tmp_path / "none").state == "absent"
    assert Run(tmp_path / "none").info() == {}
    run, can_resume = claimed(tmp_path)
    assert not can_resume
    assert run.state == "running"
    assert run.recipe() == RECIPE
    info = run.info()
    assert info["hash"] == recipe_hash(RECIPE, "data")
    assert info["data_fingerprint"] == "data"
    assert info["device"] == "cpu"
    assert info["pid"] == os.getpid()
    assert info["versions"]["torch"] == versions()["torch"] != "not installed"


def test_versions_of_what_is_not_there() -> None:
    assert versions(("no-such-distribution",))["no-such-distribution"] == "not installed"


def test_versions_are_those_of_the_libraries_that_a_recipe_uses() -> None:
    assert packages_of(RECIPE) == PACKAGES
    text = {"kind": "text", "tokens": "tokenizer", "vocabulary": "folder"}
    for content, library in (
        ({"encoders": {"visual": {"name": "timm", "model": "test_vit"}}}, "timm"),
        ({"encoders": {"text": {"name": "transformers", "model": "folder"}}}, "transformers"),
        ({"features": {"text": text}}, "transformers"),
        ({"features": {"audio": {"kind": "extractor", "model": "folder"}}}, "transformers"),
    ):
        assert packages_of(load_recipe(None, base={"dataset": {"name": "emoji"}, **content})) == (*PACKAGES, library)


def test_resume_with_nothing_to_resume_starts_the_run(tmp_path: Path) -> None:
    run, can_resume = claimed(tmp_path, resume=True)
    assert not can_resume
    assert run.state == "running"


@pytest.mark.parametrize("state", ["running", "failed"])
def test_an_interrupted_run_needs_resume_or_force(tmp_path: Path, state: str) -> None:
    run, _ = claimed(tmp_path)
    run.update(state=state)
    with pytest.raises(MlaError) as caught:
        claimed(tmp_path)
    assert caught.value.message == f"`{run.path}` holds an interrupted run of this recipe"
    assert "--resume" in caught.value.hint
    assert "--force" in caught.value.hint
    assert run.state == state  # a refusal changes nothing
    assert claimed(tmp_path, resume=True) == (run, False)  # no checkpoint: from the start
    checkpoint(run)
    assert claimed(tmp_path, resume=True) == (run, True)
    assert run.state == "running"


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    run, _ = claimed(tmp_path)
    checkpoint(run)
    run.update(state="finished")
    for how in ({}, {"resume": True}):
        with pytest.raises(MlaError) as caught:
            claimed(tmp_path, **how)
        assert caught.value.message == f"`{run.path}` already holds a finished run of this recipe"
        assert caught.value.hint == f"evaluate it with `mla eval {run.path}`, or pass `--force`"
    assert run.state == "finished"


@pytest.mark.parametrize("state", ["running", "failed", "finished"])
def test_force_starts_from_nothing(tmp_path: Path, state: str) -> None:
    run, _ = claimed(tmp_path)
    checkpoint(run)
    run.append("history.jsonl", {"epoch": 1})
    run.update(state=state)
    assert claimed(tmp_path, force=True) == (run, False)
    assert run.state == "running"
    assert run.history() == []
    assert list((run.path / "checkpoints").iterdir()) == []


def test_why_a_run_failed_is_recorded_and_forgotten_on_the_next_try(tmp_path: Path) -> None:
    run, _ = claimed(tmp_path)
    with pytest.raises(MlaError), run.failing():
        raise MlaError("loss is nan", "lower it")
    assert run.state == "failed"
    assert run.info()["error"] == "loss is nan"
    claimed(tmp_path, resume=True)
    assert run.state == "running"
    assert "error" not in run.info()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("bug")])
def test_an_interruption_is_no_failure(tmp_path: Path, error: BaseException) -> None:
    run, _ = claimed(tmp_path)
    with pytest.raises(type(error)), run.failing():
        raise error
    assert run.state == "running"


def test_a_run_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(MlaError) as caught:
        claimed(tmp_path / "runs")
    assert caught.value.message.startswith(f"cannot write `{tmp_path / 'runs'}")
    assert "--run-dir" in caught.value.hint


# ---------------------------------------------------------------- history


def test_history_lines_are_whole_and_exact(tmp_path: Path) -> None:
    run, _ = claimed(tmp_path)
    assert run.history() == []
    rows = [{"epoch": e, "loss": 0.1 + e / 3, "head_leak": None} for e in (1, 2, 3)]
    for row in rows:
        run.append("history.jsonl", row)
        run.append("timing.jsonl", {"epoch": row["epoch"], "all": 1.5})
    assert run.history() == rows
    before = (run.path / "history.jsonl").read_bytes()
    run.keep_history(3)
    assert (run.path / "history.jsonl").read_bytes() == before  # written again byte for byte
    run.keep_history(2)
    assert run.history() == rows[:2]
    assert [row["epoch"] for row in run.history("timing.jsonl")] == [1, 2]
    assert (run.path / "history.jsonl").read_bytes() == before[: len((run.path / "history.jsonl").read_bytes())]
    for epochs in (3, -1, 10**30):  # as a damaged checkpoint may say
        with pytest.raises(MlaError, match=r"history\.jsonl` lacks some of the"):
            run.keep_history(epochs)


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path: Path) -> None:
    run, _ = claimed(tmp_path)
    run.append("history.jsonl", {"epoch": 1})
    with open(run.path / "history.jsonl", "a") as file:
        file.write('{"epoch": 2, "lo')
    assert run.history() == [{"epoch": 1}]
    run.keep_history(1)
    run.append("history.jsonl", {"epoch": 2})
    assert run.history() == [{"epoch": 1}, {"epoch": 2}]


def test_history_refuses_what_json_cannot_say(tmp_path: Path) -> None:
    run, _ = claimed(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.append("history.jsonl", {"epoch": 1, "loss": float("nan")})
    assert run.history() == []


def test_history_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = claimed(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MlaError, match=r"cannot write `.*history\.jsonl`: No space left"):
        run.append("history.jsonl", {"epoch": 1})


# ---------------------------------------------------------------- checkpoints


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    run, _ = claimed(tmp_path)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "model.weight": torch.randn(3, 4, generator=generator),
        "double": torch.randn(5, generator=generator, dtype=torch.float64),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "transposed": torch.randn(3, 4, generator=generator).T,
        "grad": torch.nn.Parameter(torch.ones(2)),
    }
    values = {"epoch": 2, "round": 5, "best": 0.1 + 0.2, "nested": {"a": [1, None]}}
    run.save_checkpoint("last", tensors, values)
    found, read = run.load_checkpoint("last")
    assert read == values
    assert set(found) == set(tensors)
    for key, tensor in tensors.items():
        torch.testing.assert_close(found[key], tensor.detach(), rtol=0, atol=0)
        assert found[key].dtype == tensor.dtype
    assert b"pickle" not in (run.checkpoints / run.checkpoint_values("last")["tensors"]).read_bytes()


def test_equal_checkpoints_are_equal_bytes(tmp_path: Path) -> None:
    contents = []
    for folder in ("a", "b"):
        run, _ = claimed(tmp_path / folder)
        run.save_checkpoint("last", {f"t{i}": torch.full((2,), i) for i in range(20)}, {"epoch": 1, "round": 0})
        contents.append({p.name: p.read_bytes() for p in (run.path / "checkpoints").iterdir()})
    assert contents[0] == contents[1]


def test_a_new_checkpoint_replaces_the_old_one_of_its_name_only(tmp_path: Path) -> None:
    run, _ = claimed(tmp_path)
    checkpoint(run, 1, which="best", value=1.0)
    for epoch, number in ((1, 0), (1, 20), (2, 0)):
        checkpoint(run, epoch, number, value=epoch + number)
    assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == [
        "best-e0001-r000000.safetensors",
        "best.json",
        "last-e0002-r000000.safetensors",
        "last.json",
    ]
    assert run.load_checkpoint("last")[0]["w"][0, 0] == 2
    assert run.load_checkpoint("best")[0]["w"][0, 0] == 1


def test_dying_between_the_two_files_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = claimed(tmp_path)
    checkpoint(run, 1)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mla_cli.engine.checkpoints.write_sealed", die)
    with pytest.raises(KeyboardInterrupt):
        checkpoint(run, 2, value=9.0)
    monkeypatch.undo()
    tensors, values = run.load_checkpoint("last")
    assert values["epoch"] == 1
    assert tensors["w"][0, 0] == 0.5
    checkpoint(run, 3)
    assert len(list((run.path / "checkpoints").glob("last-*"))) == 1  # what was left over is gone


def test_checkpoints_that_cannot_be_read(tmp_path: Path) -> None:
    run, _ = claimed(tmp_path)
    with pytest.raises(MlaError, match="has no checkpoint `best`"):
        run.load_checkpoint("best")
    checkpoint(run)
    [tensors] = (run.path / "checkpoints").glob("*.safetensors")
    whole = tensors.read_bytes()
    for damaged in (whole[:-3], whole[:-1] + b"\x01", b""):
        tensors.write_bytes(damaged)
        with pytest.raises(MlaError, match="is damaged: it is not what training wrote") as caught:
            run.load_checkpoint("last")
        assert caught.value.hint == run.start_again
    tensors.unlink()
    with pytest.raises(MlaError, match="cannot read checkpoint"):
        run.load_checkpoint("last")
    values = json.loads((run.path / "checkpoints/last.json").read_text())
    older = {key: values[key] for key in ("epoch", "round", "tensors")}  # without checksums
    tensors.write_bytes(whole)
    (run.path / "checkpoints/last.json").write_text(json.dumps(older))
    assert run.load_checkpoint("last")[1] == {"epoch": 1, "round": 0}
    edited = json.dumps(values | {"epoch": 2})
    for content in ("{}", "[]", '{"tensors": 3}', '{"tensors": "../run.json"}', edited, "{"):
        (run.path / "checkpoints/last.json").write_text(content)
        with pytest.raises(MlaError, match=r"last\.json`") as caught:
            run.load_checkpoint("last")
        assert caught.value.hint == run.start_again


def test_what_starts_a_run_again_names_its_data_folder(tmp_path: Path) -> None:
    run, _ = claimed(tmp_path)
    run.update(data_dir="my data")
    command = f"start the run again with `mla train --recipe {run.recipe_file} --run-dir {run.path.parent}"
    assert run.start_again == f"{command} --data-dir 'my data' --force`"
    (run.path / "run.json").write_text("{")
    assert run.start_again == f"{command} --force`"


# ---------------------------------------------------------------- finding runs


def test_latest_is_what_was_remembered_and_still_exists(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    (tmp_path / "one").mkdir()
    remember(tmp_path, "one")
    assert latest(tmp_path) == "one"
    remember(tmp_path, "gone")
    assert latest(tmp_path) is None
    (tmp_path / ".last").write_text("\n")
    assert latest(tmp_path) is None


def test_find_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(MlaError) as caught:
        find_run(None, runs)
    assert caught.value.message == f"no run to evaluate under `{runs}`"
    assert caught.value.hint == "train one with `mla train`"
    with pytest.raises(MlaError) as caught:
        find_run("nowhere", runs)
    assert caught.value.message == "no run at `nowhere`"
    assert str(runs) in caught.value.hint

    run, _ = claimed(runs)
    remember(runs, run.name)
    hint = f"continue it with `mla train --recipe {run.path / 'recipe.yaml'} --run-dir {runs} --resume`"
    for state, words in (("running", "a run that has not finished"), ("failed", "a failed run")):
        run.update(state=state)
        for source in (None, run.name, str(run.path)):
            with pytest.raises(MlaError) as caught:
                find_run(source, runs)
            assert caught.value.message == f"`{run.path}` holds {words}"
            assert caught.value.hint == hint
    run.update(data_dir="elsewhere")
    with pytest.raises(MlaError) as caught:
        find_run(None, runs)
    assert caught.value.hint == hint.replace(" --resume", " --data-dir elsewhere --resume")
    # what the hint says is the very same run
    assert run_name(load_recipe(str(run.path / "recipe.yaml")), "data") == run.name

    run.update(state="finished")
    monkeypatch.chdir(tmp_path)
    for source in (None, run.name, str(run.path), f"runs/{run.name}/"):
        assert find_run(source, runs).path.resolve() == run.path.resolve()


def test_a_damaged_run_file_is_named(tmp_path: Path) -> None:
    run, _ = claimed(tmp_path)
    (run.path / "run.json").write_text('{"state": "fin')
    with pytest.raises(MlaError, match=r"run\.json` is not valid JSON") as caught:
        find_run(run.name, tmp_path)
    assert f"--recipe {run.path / 'recipe.yaml'} --run-dir {tmp_path} --force" in caught.value.hint
    (run.path / "run.json").write_text("[]")
    with pytest.raises(MlaError, match=r"run\.json` holds no JSON object"):
        find_run(run.name, tmp_path)
    recipe = load_recipe(str(run.path / "recipe.yaml"))
    assert not run.claim(recipe, "data", {}, resume=False, force=True)  # as the hint promises
    assert run.state == "running"


def test_a_run_without_its_recipe_says_so(tmp_path: Path) -> None:
    run, _ = claimed(tmp_path)
    (run.path / "recipe.yaml").unlink()
    with pytest.raises(MlaError, match=r"has lost its `recipe\.yaml`"):
        run.recipe()


@pytest.mark.parametrize("line", ["junk", "{}", "[]", '{"epoch": "x"}', "3"])
def test_a_damaged_line_of_history_is_named(tmp_path: Path, line: str) -> None:
    run, _ = claimed(tmp_path)
    run.append("history.jsonl", {"epoch": 1})
    with open(run.path / "history.jsonl", "a") as lines:
        lines.write(line + "\n")
    with pytest.raises(MlaError, match=r"history\.jsonl:2: not a line of this run's history"):
        run.keep_history(1)


def test_a_damaged_note_of_the_latest_run_names_none(tmp_path: Path) -> None:
    (tmp_path / ".last").write_bytes(b"\xff\xfe\n")
    assert latest(tmp_path) is None


def test_run_json_is_json(tmp_path: Path) -> None:
    run, _ = claimed(tmp_path)
    run.update(extra={"accuracy": 0.5})
    assert json.loads((run.path / "run.json").read_text())["extra"] == {"accuracy": 0.5}
    assert run.info()["device"] == "cpu"  # what was there stays

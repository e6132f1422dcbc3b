"""Rounds on several GPUs, by arithmetic: against a ring written out, and what must hold for any cluster."""

import json
from dataclasses import replace

import pytest
from command_line import mla
from hypothesis import given
from hypothesis import strategies as st
from tiny import emoji_recipe, mfeat_recipe
from torch._subclasses.fake_tensor import FakeTensorMode

from mla_cli.engine.cluster import Cluster, one_round, rounds
from mla_cli.engine.cost import Paper, build_method, on_paper
from mla_cli.engine.shapes import shapes_of
from mla_cli.errors import MlaError
from mla_cli.recipe import load_recipe


@pytest.fixture(scope="module")
def paper() -> Paper:
    """`mla` on three views, batch 32."""
    return on_paper(mfeat_recipe(("mor", "fou", "pix"), dataset={"limit": None}, train={"batch_size": 32}))


@pytest.mark.parametrize("gpus", [2, 3, 8])
def test_bytes_are_those_of_a_ring(paper: Paper, gpus: int) -> None:
    """Each rank sends one chunk of W in each of W - 1 steps that add up, and of W - 1 that hand on the sums."""
    held = [{chunk: {rank} for chunk in range(gpus)} for rank in range(gpus)]  # whose numbers are in each chunk
    sent = [0] * gpus
    for turn in range(2 * (gpus - 1)):
        moving = [(rank, (rank - turn) % gpus) for rank in range(gpus)]
        for rank, chunk, content in [(rank, chunk, set(held[rank][chunk])) for rank, chunk in moving]:
            held[(rank + 1) % gpus][chunk] |= content
            sent[rank] += 1
    assert all(content == set(range(gpus)) for chunks in held for content in chunks.values())
    seconds = max(sent) / gpus * sum(paper.reduced().values()) * 8 / 25e9
    found = one_round(paper, Cluster((gpus,), gbps=25.0, latency=0.0), gpus, 32, None)
    assert found.exchange == pytest.approx(seconds, rel=1e-12)


def test_reduced_bytes_are_gradients_features_and_the_loss() -> None:
    recipe = mfeat_recipe(("mor", "pix"))
    shapes = shapes_of(recipe)
    with FakeTensorMode():
        method = build_method(recipe, shapes)
    head = sum(p.numel() for p in method.heads.parameters())
    for m, count in on_paper(recipe).reduced().items():
        assert count == 4 * (sum(p.numel() for p in method.encoders[m].parameters()) + head + recipe.shared_width + 1)
    joint = on_paper(mfeat_recipe(("mor", "pix"), method={"name": "concat"})).reduced()
    assert list(joint) == ["all modalities"]


def test_compute_is_flops_over_speed(paper: Paper) -> None:
    alone, *_ = rounds(paper, Cluster((8,), tflops=0.5))
    assert (alone.gpus, alone.batch, alone.share, alone.idle, alone.exchange) == (1, 32, 32, 0, 0.0)
    assert alone.compute == pytest.approx(32 * sum(p.step_flops for p in paper.encoders) / 0.5e12)
    assert alone.rate == pytest.approx(32 / alone.compute)


def test_batch_normalisation_leaves_gpus_without_samples(paper: Paper) -> None:
    """64 GPUs and 32 samples: one each, or with batch normalisation two each."""
    plain = one_round(paper, Cluster((64,)), 64, 32, None)
    assert (plain.share, plain.idle) == (1, 32)
    needing = replace(paper, encoders=[replace(part, least=2) for part in paper.encoders])
    found = one_round(needing, Cluster((64,)), 64, 32, None)
    assert (found.share, found.idle) == (2, 48)
    size = {"visual": {"kind": "image", "size": 16}, "text": {"kind": "text", "length": 8, "buckets": 64}}
    assert [part.least for part in on_paper(emoji_recipe(features=size)).encoders] == [2, 1]  # a convnet, a bag


@given(
    gpus=st.integers(1, 512),
    batch=st.integers(1, 4096),
    gbps=st.floats(0.1, 1e4),
    latency=st.floats(0, 1e-3),
    tflops=st.floats(0.01, 1000),
)
def test_no_cluster_is_better_than_its_parts(
    paper: Paper, gpus: int, batch: int, gbps: float, latency: float, tflops: float
) -> None:
    cluster = Cluster((gpus,), tflops, gbps, latency)
    found = one_round(paper, cluster, gpus, batch, one_round(paper, cluster, 1, batch, None))
    assert 0 < found.efficiency <= 1 + 1e-9
    assert batch <= found.share * (gpus - found.idle)
    assert (found.exchange == 0) == (gpus == 1)
    faster = one_round(paper, replace(cluster, gbps=2 * gbps), gpus, batch, None)
    assert faster.compute == found.compute and faster.exchange <= found.exchange


def test_with_free_exchange_and_a_batch_for_each_nothing_is_lost(paper: Paper) -> None:
    table = rounds(paper, Cluster((8, 8, 1, 64), gbps=1e18, latency=0.0))
    assert [(r.gpus, r.batch) for r in table] == [(1, 32), (8, 32), (8, 256), (64, 32), (64, 2048)]
    assert [r.efficiency for r in table if r.batch == 32 * r.gpus] == pytest.approx([1, 1, 1])


def test_a_method_of_one_process_has_no_cluster(paper: Paper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mla_cli.methods.mla.Method.one_process", True, raising=False)
    with pytest.raises(MlaError, match="`mla` trains in one process only"):
        rounds(paper, Cluster((8,)))


# ---------------------------------------------------------------- the store of the whole set

SIZES = {"cremad": 7442, "kinetics_sounds": 19_000, "food101": 90_000, "mvsa": 2592, "iemocap": 5531}


@pytest.mark.parametrize("name", SIZES)
def test_the_published_sets_have_sizes(name: str) -> None:
    shapes = shapes_of(load_recipe(name))
    assert (shapes.samples, shapes.is_prepared) == (SIZES[name], False)


def test_a_prepared_store_counts_itself(mfeat_store) -> None:
    shapes = shapes_of(load_recipe("mfeat"), mfeat_store)
    assert (shapes.samples, shapes.is_prepared) == (len(mfeat_store.index), True)


# ---------------------------------------------------------------- the command

SHOW = ("recipes", "show", "mfeat", "--set", "dataset.modalities=[pix]")


def test_the_table_says_what_is_assumed() -> None:
    output = mla(*SHOW, "--cost", "--no-measure", "--gpus", "8", "--gbps", "25", "--tflops", "2", "--latency", "20")
    assert output.code == 0, output.stderr
    assert "mfeat: a round on several GPUs, on paper" in output.stdout
    flat = " ".join(output.stdout.split())
    assert "arithmetic, not measured: no GPU was used;" in flat
    assert "assumed: 2 TFLOP/s" in flat and "25 Gbit/s" in flat and "20 us" in flat


def test_rows_hold_what_the_table_shows() -> None:
    output = mla(*SHOW, "--cost", "--no-measure", "--gpus", "8", "--format", "json")
    rows = [row for row in json.loads(output.stdout) if row["basis"] == "assumed"]
    assert {row["part"] for row in rows} == {"round on 1 GPU", "round on 8 GPUs"}
    assert {row["quantity"] for row in rows} == {"compute", "all_reduce", "efficiency"}
    plain = json.loads(mla(*SHOW, "--cost", "--no-measure", "--format", "json").stdout)
    assert not [row for row in plain if row["basis"] == "assumed"]
    assert [row["quantity"] for row in plain if row["quantity"] == "reduced"] == ["reduced"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gpus", "8"], "--gpus is for --cost"),
        (["--cost", "--gbps", "25"], "--gbps is for --gpus: add, for example, --cost --gpus 8"),
        (["--cost", "--gpus", "0"], "greater than or equal to 1"),
        (["--cost", "--gpus", "8", "--tflops", "0"], "greater than or equal to"),
        (["--cost", "--gpus", "8", "--tflops", "nan"], "--tflops"),
    ],
)
def test_options_that_mean_nothing_are_usage_errors(words: list[str], told: str) -> None:
    output = mla(*SHOW, *words)
    assert output.code == 2
    assert told in " ".join(output.stderr.replace("│", " ").split())

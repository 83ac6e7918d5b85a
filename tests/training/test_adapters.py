"""Adapters by name and role, queries' encoders, 4-bit bases, steps of several batches."""

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import embedlm
from embedlm.data import Group, Records
from embedlm.errors import InputError, UnsupportedError
from embedlm.schema.tuning import DynamicNegatives, Stage
from embedlm.training import train
from embedlm.training.batches import Batches, BatchRow
from embedlm.training.dynamic_negatives import NegativeHardness
from embedlm.training.loop import _gradient
from embedlm.training.parameters import set_trainable
from embedlm.training.stages import _load_trainable
from embedlm.training.step import Stepper
from tests.command import sentences

WORDS = ("river water boat", "engine repair wheel", "music theory piano", "trade grain market")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a folder with queries, their answers and five hard negatives; and scored pairs."""
    folder = tmp_path_factory.mktemp("data")
    texts = list(dict.fromkeys(sentences(500, seed=8, longest=9)))
    topics = [f"{WORDS[i % 4]} {text}" for i, text in enumerate(texts)]
    groups = [
        {"query": topics[i], "pos": [topics[i + 4]], "neg": topics[i + 9 : i + 14]}
        for i in range(0, 320, 5)
    ]
    pairs = [
        {"sentence1": topics[i], "sentence2": topics[i + 1 + i % 4], "score": float(i % 4 == 3)}
        for i in range(200)
    ]
    for name, rows in {"groups": groups, "pairs": pairs}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def a_stage(name, objective="info_nce", source="groups.jsonl", *, adapter=None, **more):
    own = {"rank": 4, "alpha": 8} if more.get("train") != "all" else None
    return {
        "name": name,
        "objective": [{"kind": objective, "temperature": 0.05}],
        "data": [{"source": source, "adapter": adapter}],
        "batching": {"size": 16, "chunk_tokens": 128},
        "optimizer": {"steps": 6, "learning_rate": 0.01},
        "adapter": own,
        "train": "adapter",
        **more,
    }


def a_plan(model, *stages, **fields):
    return {"model": str(model), "recipe": "plain-mean", "stages": list(stages), **fields}


BY_ROLE = {"query": "asking", "document": "answering"}
TEXTS = ["river water boat", "trade grain market and the engine"]


def test_adapters_by_role_and_by_name_learn_on_an_unchanged_base(tiny_llama, data, tmp_path):
    plan = a_plan(
        tiny_llama,
        a_stage("retrieval", adapter=BY_ROLE),
        a_stage("matching", "cosent", "pairs.jsonl", adapter="text-matching"),
    )
    model = train(plan, tmp_path, data=data, device="cpu")
    assert set(model.adapters) == {"asking", "answering", "text-matching"}
    base = embedlm.load(tiny_llama, "plain-mean", device="cpu", dtype="float32")
    np.testing.assert_array_equal(model.encode(TEXTS, adapter=None), base.encode(TEXTS))
    named = {name: model.encode(TEXTS, adapter=name) for name in model.adapters}
    np.testing.assert_array_equal(named["asking"], model.encode_query(TEXTS))
    np.testing.assert_array_equal(named["answering"], model.encode_document(TEXTS))
    found = [*named.values(), base.encode(TEXTS)]
    for index, one in enumerate(found):
        assert all(np.abs(one - other).max() > 1e-3 for other in found[:index])
    for name in BY_ROLE.values():  # the second stage leaves the first one's adapters alone
        first, last = (
            load_file(folder / "model" / "adapters" / name / "adapter_model.safetensors")
            for folder in (tmp_path / "stage-1-retrieval", tmp_path)
        )
        assert all(torch.equal(first[key], last[key]) for key in first)
    (tmp_path / "model").rename(tmp_path / "moved")  # an adapter finds its base where it is now
    alone = embedlm.load(tmp_path / "moved" / "adapters" / "text-matching", "plain-mean")
    np.testing.assert_allclose(alone.encode(TEXTS), named["text-matching"], atol=1e-5)


def gradients(folder, stage, records):
    """Return the gradients of a step, by the parameter's name."""
    model = _load_trainable(stage, str(folder), embedlm.Recipe.load("plain-mean"), "cpu")
    torch.manual_seed(1)
    set_trainable(model, stage)
    with torch.no_grad():  # an adapter's second matrix begins at zero, and the first's gradient too
        for parameter in model.modules().parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05)
    batches = Batches([records], stage.data, stage.batching, 0)
    model.modules().train()
    _gradient(Stepper(model, stage, records.kind, 0), batches)
    return {n: p.grad for n, p in model.modules().named_parameters() if p.grad is not None}


LINES = list(dict.fromkeys(sentences(120, seed=4, longest=12)))
GROUPS = Records(
    "groups",
    "groups",
    tuple(
        Group(q, (p,), (n,)) for q, p, n in zip(LINES[::3], LINES[1::3], LINES[2::3], strict=False)
    ),
    has_negatives=True,
)


@pytest.mark.parametrize("more", [{"adapter": BY_ROLE}, {"train": "query_encoder"}])
def test_cached_gradients_of_switched_adapters_equal_those_of_one_graph(tiny_llama, more):
    found = []
    for chunk in (40, None):
        fields = a_stage("s", **more, batching={"size": 8, "chunk_tokens": chunk})
        found.append(gradients(tiny_llama, Stage.model_validate(fields), GROUPS))
    cached, plain = found
    assert cached.keys() == plain.keys()
    assert all("lora_" in name for name in cached)
    two = {name.split(".lora_")[1].split(".")[1] for name in cached}
    assert len(two) == (2 if "adapter" in more else 1)
    for name, gradient in cached.items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-6, rtol=1e-4)


def test_a_query_encoder_leaves_documents_where_they_were(tiny_llama, data, tmp_path):
    plan = a_plan(tiny_llama, a_stage("queries", train="query_encoder"))
    dev = {"source": "groups.jsonl", "every": 2}
    model = train({**plan, "dev": dev}, tmp_path, data=data, device="cpu")
    base = embedlm.load(tiny_llama, "plain-mean", device="cpu", dtype="float32")
    np.testing.assert_array_equal(model.encode_document(TEXTS), base.encode_document(TEXTS))
    assert np.abs(model.encode_query(TEXTS) - base.encode_query(TEXTS)).max() > 1e-3
    summary = json.loads((tmp_path / "stage-1-queries" / "summary.json").read_text())
    assert summary["best_score"] > summary["dev"][0]["score"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"train": "all", "adapter": None}, "need train: adapter"),
        ({"data": [{"source": "groups.jsonl", "adapter": "a/b"}]}, "is not a name"),
        ({"adapter": {"kind": "qlora"}}, "lora or dora"),
        ({"batching": {}, "gradient_checkpointing": True}, "needs batching.chunk_tokens"),
        ({"data": [{"source": "groups.jsonl", "adapter": {"other": "x"}}]}, "names no adapter"),
        (
            {
                "data": [
                    {"source": "groups.jsonl", "adapter": "one"},
                    {"source": "groups.jsonl", "adapter": "two"},
                ]
            },
            "homogeneous",
        ),
    ],
)
def test_adapters_that_cannot_be_are_refused_first(tiny_llama, data, tmp_path, change, what):
    fields = {**a_stage("s", adapter="one"), **change}
    with pytest.raises(InputError, match=what):
        train(a_plan(tiny_llama, fields), tmp_path, data=data, device="cpu")
    assert not list(tmp_path.glob("stage-*"))


def test_a_base_with_adapters_is_not_trained_as_one(tiny_llama, data, tmp_path):
    later = a_stage("later", train="all")
    plan = a_plan(tiny_llama, a_stage("named", adapter="one"), later)
    with pytest.raises(InputError, match="trains the base, and an earlier stage"):
        train(plan, tmp_path / "both", data=data, device="cpu")
    train(a_plan(tiny_llama, a_stage("named", adapter="one")), tmp_path, data=data, device="cpu")
    alone = a_plan(tmp_path / "model", later)
    del alone["recipe"]
    with pytest.raises(UnsupportedError, match="switchable adapters"):
        train(alone, tmp_path / "later", data=data, device="cpu")


def test_a_four_bit_base_ends_as_the_whole_one_with_the_adapter(tiny_llama, data, tmp_path):
    pytest.importorskip("bitsandbytes")
    plan = a_plan(tiny_llama, a_stage("s", adapter=None))
    plan["stages"][0]["adapter"] = {"kind": "qlora", "rank": 4, "alpha": 8}
    plan["stages"][0]["data"][0].pop("adapter")
    model = train(plan, tmp_path, data=data, device="cpu")
    folder = tmp_path / "stage-1-s" / "adapter"
    merged = embedlm.load(
        tiny_llama, "plain-mean", device="cpu", dtype="float32", adapters=[str(folder)]
    )
    np.testing.assert_allclose(model.encode(TEXTS), merged.encode(TEXTS), atol=1e-6)
    base = embedlm.load(tiny_llama, "plain-mean", device="cpu", dtype="float32")
    assert np.abs(model.encode(TEXTS) - base.encode(TEXTS)).max() > 1e-3


def test_accumulated_gradients_are_the_mean_of_the_batches(tiny_llama):
    def found(count, skipped=0):
        batching = {"size": 6, "chunk_tokens": 60, "accumulate": count}
        stage = Stage.model_validate(a_stage("s", train="all", batching=batching))
        model = _load_trainable(stage, str(tiny_llama), embedlm.Recipe.load("plain-mean"), "cpu")
        set_trainable(model, stage)
        batches = Batches([GROUPS], stage.data, stage.batching, 0)
        batches.skip(skipped)
        told = _gradient(Stepper(model, stage, "groups", 0), batches)
        return told["loss"], [p.grad for p in model.modules().parameters()]

    both, first, second = found(2), found(1), found(1, skipped=1)
    assert both[0] == pytest.approx((first[0] + second[0]) / 2, abs=1e-6)
    for mean, a, b in zip(both[1], first[1], second[1], strict=True):
        if mean is not None:
            torch.testing.assert_close(mean, (a + b) / 2, atol=1e-6, rtol=1e-4)


# -- hard negatives that have become easy ----------------------------------------------------------


def test_easy_negatives_are_replaced_by_later_ones():
    hardness = NegativeHardness(DynamicNegatives(every=10))
    rows = [BatchRow(0, "q", ("p", "n"), index=3)]
    assert hardness.places(0, 3, 2, 40) == [0, 1]
    hardness.look(rows, torch.tensor([[0.6, 0.8]]), 0)
    hardness.look(rows, torch.tensor([[0.1, 0.1]]), 5)  # too early
    assert hardness.places(0, 3, 2, 40) == [0, 1]
    hardness.look(rows, torch.tensor([[0.65, 0.65]]), 10)  # 1.15 * 0.65 > 0.7
    assert hardness.places(0, 3, 2, 40) == [0, 1]
    hardness.look(rows, torch.tensor([[0.5, 0.6]]), 20)
    assert hardness.places(0, 3, 2, 40) == [10, 11]
    hardness.look(rows, torch.tensor([[0.5, 0.5]]), 21)  # the new ones' first score
    hardness.look(rows, torch.tensor([[0.2, 0.2]]), 31)
    assert hardness.places(0, 3, 2, 40) == [12, 13]
    again = NegativeHardness(DynamicNegatives(every=10))
    again.restore(json.loads(json.dumps(hardness.state())))
    assert again.places(0, 3, 2, 40) == [12, 13]
    assert again.places(0, 4, 2, 40) == [0, 1]
    assert sorted(again.places(0, 3, 4, 3)) == [0, 1, 2]  # fewer than wanted


def test_negatives_that_are_still_hard_in_themselves_stay():
    hardness = NegativeHardness(DynamicNegatives(every=1))
    rows = [BatchRow(0, "q", ("p", "n"), index=0)]
    for step, score in enumerate((1.0, 0.85)):
        hardness.look(rows, torch.tensor([[score]]), step)
    assert hardness.places(0, 0, 1, 40) == [0]


def test_dynamic_negatives_resume_where_they_were(run, tiny_llama, data, tmp_path):
    stage = a_stage("s", train="all", dynamic_negatives={"every": 1, "factor": 0.9})
    stage["optimizer"] = {"steps": 16, "learning_rate": 0.003}
    plan = a_plan(tiny_llama, stage, checkpoint_every=2)
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(plan))
    options = ("--data", data, "--device", "cpu")
    assert run("train", file, "-o", tmp_path / "whole", *options).code == 0
    killed = tmp_path / "killed"
    moment = (str(killed / "stage-1-*/checkpoints/step-10"), 1, 0.0)
    assert run("train", file, "-o", killed, *options, kill_at=moment).code == -9
    progress = sorted(killed.glob("stage-1-s/checkpoints/step-*/progress.json"))[-1]
    turns = [turn for turn, _, _ in json.loads(progress.read_text())["negatives"].values()]
    assert sum(turns) > 0
    assert run("train", file, "-o", killed, *options).code == 0
    ours, theirs = (
        load_file(folder / "model" / "model.safetensors") for folder in (killed, tmp_path / "whole")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

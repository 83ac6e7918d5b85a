"""Gradients: cached, packed and on two ranks they are those of the whole batch at once."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional

import embedlm
from embedlm import losses
from embedlm.data import Group, Pair, Records
from embedlm.errors import UnsupportedError
from embedlm.schema.tuning import Stage
from embedlm.training.batches import Batches
from embedlm.training.checkpoint import trained_parameters
from embedlm.training.devices import sum_gradients
from embedlm.training.parameters import attention_dropout, set_trainable
from embedlm.training.stages import _load_trainable
from embedlm.training.step import Stepper
from tests.command import sentences

TEXTS = sentences(60, seed=3, longest=12)
GROUPS = Records(
    "groups",
    "groups",
    tuple(
        Group(q, (p,), (n, m), (3.0, 1.0, 0.5))
        for q, p, n, m in zip(*(dict.fromkeys(TEXTS[i::4]) for i in range(4)), strict=False)
    ),
    has_negatives=True,
    has_scores=True,
)
PAIRS = Records(
    "pairs",
    "pairs",
    tuple(Pair(a, b, i / 20) for i, (a, b) in enumerate(zip(TEXTS[::2], TEXTS[1::2], strict=True))),
)
BARE = Records("texts", "texts", tuple(TEXTS))


def stage(objective="info_nce", *, size=8, chunk=None, temperature=None, options=None, **more):
    loss = {"kind": objective, "temperature": temperature, "options": options or {}}
    return Stage.model_validate(
        {
            "name": "s",
            "objective": [loss],
            "data": [{"source": "x"}],
            "batching": {"size": size, "chunk_tokens": chunk, "group_size": 3},
            **more,
        }
    )


def gradients(folder, wanted, records, recipe="plain-mean", still=False, **change):
    """Return the loss of the first batch and the gradient of every parameter that is trained.

    A still model has no dropout of its own.
    """
    own = embedlm.Recipe.load(recipe).override(change) if change else embedlm.Recipe.load(recipe)
    model = _load_trainable(wanted, str(folder), own, "cpu")
    set_trainable(model, wanted)
    modules = model.modules()
    modules.train(not still)
    batches = Batches([records], wanted.data, wanted.batching, 0)
    torch.manual_seed(5)
    with attention_dropout(model, wanted.dropout):
        told = Stepper(model, wanted, records.kind, 0).backward(batches.next())
    sum_gradients(trained_parameters(modules).values())
    found = {n: p.grad for n, p in modules.named_parameters() if p.grad is not None}
    return told["loss"], found


def same(a, b, atol=1e-6):
    assert a[0] == pytest.approx(b[0], rel=1e-6, abs=1e-5)
    assert a[1].keys() == b[1].keys()
    assert max(float(g.abs().max()) for g in a[1].values()) > 1e-3
    for name, gradient in a[1].items():
        torch.testing.assert_close(gradient, b[1][name], atol=atol, rtol=1e-3)


@pytest.mark.parametrize("dropout", [None, 0.3])
@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "bert"])
def test_cached_gradients_are_the_plain_ones(model_folder, name, dropout, monkeypatch):
    folder = model_folder(name)
    if dropout:  # whole batches in as many packs as the cached ones, so that both draw the same
        monkeypatch.setattr("embedlm.training.stages.PACK", 40)
    how = {"still": dropout is None}
    plain = gradients(folder, stage(temperature=0.1, dropout=dropout), GROUPS, **how)
    cached = gradients(folder, stage(chunk=40, temperature=0.1, dropout=dropout), GROUPS, **how)
    same(plain, cached)
    if dropout:
        without = gradients(folder, stage(temperature=0.1, dropout=0.0), GROUPS)
        assert abs(without[0] - plain[0]) > 1e-4


def padded(folder, rows):
    """Return the loss and gradients of transformers' own padded run, mean pooling, InfoNCE."""
    network = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [row.query for row in rows] + [text for row in rows for text in row.documents]
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    encoded.pop("token_type_ids", None)
    h_BTD = network(**encoded).last_hidden_state
    mask_BT1 = encoded["attention_mask"].unsqueeze(-1).float()
    v_BD = (h_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)
    q_BD, d_MD = (functional.normalize(x, dim=1) for x in v_BD.split([len(rows), 3 * len(rows)]))
    wanted = torch.arange(len(rows)) * 3
    loss = functional.cross_entropy(q_BD @ d_MD.T / 0.1, wanted)
    loss.backward()
    found = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    return float(loss.detach()), found


@pytest.mark.parametrize("chunk", [None, 40])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma", "bert", "gpt2"])
def test_packed_gradients_are_those_of_a_padded_batch(model_folder, name, chunk):
    folder, wanted = model_folder(name), stage(chunk=chunk, temperature=0.1)
    loss, ours = gradients(folder, wanted, GROUPS, still=True)
    batch = Batches([GROUPS], wanted.data, wanted.batching, 0).next()
    theirs = padded(folder, batch.rows)
    ours = {n.split(".", 1)[1]: g for n, g in ours.items() if n.startswith("backbone.")}
    shared = {n: g for n, g in theirs[1].items() if n in ours}
    assert len(shared) > 15
    same((loss, {n: ours[n] for n in shared}), (theirs[0], shared), atol=2e-5)


@pytest.mark.parametrize(
    ("objective", "records", "recipe", "options"),
    [
        ("improved_info_nce", GROUPS, "plain-mean", {}),
        ("triplet", GROUPS, "plain-last", {"margin": 0.5}),
        ("kl_distill", GROUPS, "plain-mean", {}),
        ("margin_mse", GROUPS, "weighted-mean", {}),
        ("cosent", PAIRS, "prompteol", {}),
        ("angle", PAIRS, "plain-mean", {}),
        ("info_nce", GROUPS, "splade-causal", {"head": "sparse"}),
        ("flops", BARE, "splade-causal", {}),
        ("late_interaction", GROUPS, "one-pass", {}),
        ("m3_self_distill", GROUPS, "one-pass", {}),
        ("m3_self_distill", GROUPS, "bge-m3", {}),
        ("simcse", BARE, "plain-last", {}),
    ],
)
def test_every_kind_of_objective_and_head_is_cached_alike(
    tiny_llama, objective, records, recipe, options
):
    known = {"temperature": 0.1} if objective in ("info_nce", "simcse", "late_interaction") else {}
    plain = gradients(tiny_llama, stage(objective, options=options, **known), records, recipe)
    cached = gradients(
        tiny_llama, stage(objective, chunk=60, options=options, **known), records, recipe
    )
    same(plain, cached, atol=3e-5)


def test_layers_computed_again_give_the_same_gradients(tiny_llama):
    plain = gradients(tiny_llama, stage(temperature=0.1), GROUPS)
    again = gradients(tiny_llama, stage(temperature=0.1, gradient_checkpointing=True), GROUPS)
    same(plain, again)


def test_matryoshka_is_the_sum_over_widths(tiny_llama):
    loss = {"kind": "info_nce", "temperature": 0.1, "matryoshka": [8, 16]}
    wanted = stage().model_copy(
        update={"objective": Stage.model_validate({"name": "s", "objective": [loss]}).objective}
    )
    found, _ = gradients(tiny_llama, wanted, GROUPS)
    model = embedlm.load(tiny_llama, "plain-mean", device="cpu")
    rows = Batches([GROUPS], wanted.data, wanted.batching, 0).next().rows
    q_BD = torch.from_numpy(model.encode_query([row.query for row in rows]))
    d_MD = torch.from_numpy(model.encode_document([text for row in rows for text in row.documents]))
    expected = losses.matryoshka(
        losses.info_nce, [q_BD, d_MD], dims=[model.dim, 16, 8], temperature=0.1
    )
    assert found == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("kind", ["lora", "dora", "qlora"])
def test_an_adapter_is_all_that_learns(tiny_llama, kind):
    if kind == "qlora":
        pytest.importorskip("bitsandbytes")
    wanted = stage(temperature=0.1, train="adapter", adapter={"kind": kind, "rank": 4})
    _, found = gradients(tiny_llama, wanted, GROUPS)
    assert found
    assert all("lora_" in name for name in found)


# -- language modelling ----------------------------------------------------------------------------


def test_next_token_equals_transformers(tiny_llama):
    loss, found = gradients(tiny_llama, stage("ntp", chunk=40), BARE)
    network = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    wanted = stage("ntp")
    rows = Batches([BARE], wanted.data, wanted.batching, 0).next().rows
    encoded = tokenizer([row.query for row in rows], padding=True, return_tensors="pt")
    labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)
    encoded.pop("token_type_ids", None)
    expected = network(**encoded, labels=labels).loss
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), abs=1e-5)
    theirs = dict(network.named_parameters())
    names = [n for n in found if n.startswith("backbone.layers")]
    assert len(names) > 8
    for name in names:
        own = theirs[name.replace("backbone.", "model.")].grad
        torch.testing.assert_close(found[name], own, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("kind", ["mntp", "mlm"])
def test_a_hidden_token_is_foreseen_from_its_place_or_the_one_before(tiny_llama, kind):
    """With everything hidden, the loss is that of the states at, or before, each place."""
    wanted = stage(kind, mask_probability=0.999999, options={"replace": "all"})
    loss, _ = gradients(tiny_llama, wanted, BARE, **{"backbone.attention": "bidirectional"})
    model = embedlm.load(
        tiny_llama,
        embedlm.Recipe.load("plain-mean").override(
            {"backbone.attention": "bidirectional", "heads": [{"sparse": {}}]}
        ),
        device="cpu",
    )
    rows = Batches([BARE], wanted.data, wanted.batching, 0).next().rows
    total, count = 0.0, 0
    for row in rows:
        ids = model.tokenizer(row.query)["input_ids"]
        seen = [ids[0]] + [model.tokenizer.mask_token_id] * (len(ids) - 1)
        with torch.no_grad():
            logits = model.backbone.logits(model.backbone.run([seen]))
        at = logits[:-1] if kind == "mntp" else logits[1:]
        total += float(functional.cross_entropy(at, torch.tensor(ids[1:]), reduction="sum"))
        count += len(ids) - 1
    assert loss == pytest.approx(total / count, abs=1e-4)


# -- two ranks -------------------------------------------------------------------------------------


RANKED = """
import json, sys, torch
import torch.distributed as dist
torch.set_num_threads(1)
from embedlm.training.devices import process_rank
from tests.training.test_gradients import GROUPS, gradients, stage
dist.init_process_group("gloo")
loss, found = gradients(sys.argv[1], stage(temperature=0.1, chunk=40, size=8), GROUPS)
if process_rank() == 0:
    torch.save({"loss": loss, "gradients": found}, sys.argv[2])
dist.barrier()
dist.destroy_process_group()
"""


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_two_ranks_are_one_with_the_joined_batch(tiny_llama, tmp_path):
    """Two hard negatives a query: their order and their gradients cross the ranks."""
    port, target = str(free_port()), tmp_path / "found.pt"
    root = Path(__file__).parents[2]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", RANKED, str(tiny_llama), str(target)],
            cwd=root,
            env={
                **os.environ,
                "RANK": str(place),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            },
        )
        for place in range(2)
    ]
    assert [one.wait(300) for one in both] == [0, 0]
    found = torch.load(target, weights_only=True)
    one = gradients(tiny_llama, stage(temperature=0.1, size=8), GROUPS)
    same((found["loss"], found["gradients"]), one, atol=2e-6)


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_torchrun_gives_the_weights_of_one_process(tiny_llama, run, tmp_path, sharding):
    """A whole plan: stages, dev scores, checkpoints and adapters on two processes."""
    rows = [{"query": g.query, "pos": [*g.positives], "neg": [*g.negatives]} for g in GROUPS.items]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "groups.jsonl").write_text(text)
    common = {
        "objective": [{"kind": "info_nce", "temperature": 0.1}],
        "data": [{"source": "groups.jsonl"}],
        "batching": {"size": 8, "group_size": 3, "chunk_tokens": 60},
        "optimizer": {"steps": 4, "learning_rate": 1e-3},
    }
    adapter = {"train": "adapter", "adapter": {"rank": 4}}
    plan = {
        "model": str(tiny_llama),
        "stages": [
            {"name": "one", **common},
            {"name": "two", **common, **adapter},
            {"name": "three", **common, "objective": [{"kind": "ntp"}], "batching": {"size": 4}},
        ],
        "sharding": sharding,
        "dev": {"source": "groups.jsonl", "every": 2},
        "checkpoint_every": 2,
    }
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    command = ["train", str(tmp_path / "plan.yaml"), "--device", "cpu", "-o"]
    assert run(*command, tmp_path / "one").code == 0
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    subprocess.run(
        [
            sys.executable,
            *launch,
            str(free_port()),
            "-m",
            "embedlm.cli",
            *command,
            tmp_path / "two",
        ],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    ours, theirs = (
        embedlm.load(tmp_path / name / "model", device="cpu").encode(TEXTS)
        for name in ("two", "one")
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert np.abs(ours - embedlm.load(tiny_llama, device="cpu").encode(TEXTS)).max() > 1e-2


# -- what cannot be trained ------------------------------------------------------------------------


def test_a_recipe_of_several_prompts_is_refused(tiny_llama):
    with pytest.raises(UnsupportedError, match="averages several prompts"):
        gradients(tiny_llama, stage(), GROUPS, "metaeol")


def test_examples_stand_before_queries_only(tiny_llama):
    from embedlm.training.requests import requests_of

    recipe = embedlm.Recipe.load("bge-icl")
    model = embedlm.load(tiny_llama, recipe, device="cpu")
    wanted = stage(batching={"size": 8, "group_size": 3, "demonstrations": 3})
    batch = Batches([GROUPS], wanted.data, wanted.batching, 0).next()
    queries, documents = requests_of(
        model, wanted, batch, "groups", batch.rows, np.random.default_rng(0)
    )
    counts = [len(one) for one in queries.demonstrations]
    assert 0 in counts
    assert max(counts) == 3
    assert documents.demonstrations is None
    for row, shown in zip(batch.rows, queries.demonstrations, strict=True):
        assert row.query not in json.dumps(shown)

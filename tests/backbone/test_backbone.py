"""Every fast path gives the slow path's states, and every token sees what the recipe says."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import embedlm
from embedlm.backbone import load_backbone, network
from embedlm.encode.plan import DEPTH, PACK_COST, common_prefix, grouped, plan
from embedlm.errors import ModelError, UnsupportedError
from embedlm.schema.recipe import Backbone
from tests.models import DECODERS, ENCODERS, STUBBORN

TEXTS = [
    "plants make food",
    "x",
    "",
    "the quick brown fox jumps over the lazy dog " * 4,
    "light energy",
    "dark energy!",
    "a committee met on Tuesday",
    "naïve café 東京 😀",
]
CAN = [*DECODERS, *ENCODERS]
settings.register_profile(
    "shared", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("shared")


def load(model_folder, name, attention="native", **options):
    recipe = embedlm.Recipe.load("plain-mean").override({"backbone.attention": attention})
    return embedlm.load(model_folder(name), recipe=recipe, **options)


def count_tokens(monkeypatch):
    """Return a list that grows by the tokens of every pass."""
    forward, tokens = network.Backbone._forward, []

    def counted(self, view, indices, inputs):
        tokens.append(inputs["input_ids"].shape[1])
        return forward(self, view, indices, inputs)

    monkeypatch.setattr(network.Backbone, "_forward", counted)
    return tokens


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("name", CAN)
def test_packed_padded_and_one_by_one_are_equal(model_folder, name, attention):
    if attention == "causal" and name in ENCODERS:
        pytest.skip("an encoder has no causal mask")
    model = load(model_folder, name, attention)
    padded = load(model_folder, name, attention, attn="sdpa" if name != "t5" else "eager")
    eager = load(model_folder, name, attention, attn="eager")
    assert model.backbone.causal is (attention == "causal")
    assert model.backbone.packs is (name != "t5")
    found = model.encode(TEXTS)
    assert relative(found, padded.encode(TEXTS)) < 1e-4
    # transformers' SDPA path leaves Gemma 2's soft cap out; its eager path has it, as ours.
    if name != "gemma2":
        assert relative(found, eager.encode(TEXTS)) < 1e-4
    alone = np.stack([model.encode(text) for text in TEXTS])
    assert relative(found, alone) < 1e-4
    assert relative(found, model.encode(TEXTS, batch_tokens=7)) < 1e-4


@pytest.mark.parametrize("name", DECODERS)
def test_direction_changes_the_vectors(model_folder, name):
    causal = load(model_folder, name, "causal").encode(TEXTS)
    both = load(model_folder, name, "bidirectional").encode(TEXTS)
    assert relative(causal, both) > 1e-2


@pytest.mark.parametrize("attn", ["packed", "sdpa", "eager"])
@pytest.mark.parametrize("name", ["mistral-sliding", "gemma3", "gpt2", "opt"])
def test_the_probe_holds_in_every_implementation(model_folder, name, attn):
    backbone = load_backbone(
        str(model_folder(name)), Backbone(attention="bidirectional"), attn=attn
    )
    assert backbone.implementation == attn
    # One row alone, where a lost flag shows: no padding, so no mask that could hide it.
    ids = [[5, 6, 7, 8, 9]]
    before = backbone.run(ids)[0]
    after = backbone.run([[5, 6, 7, 8, 300]])[0]
    assert (before - after).abs().max() > 1e-4


def test_an_architecture_that_cannot_is_refused(model_folder):
    with pytest.raises(UnsupportedError, match=r"bidirectional.*do not look ahead"):
        load(model_folder, "gpt-neo", "bidirectional")


@pytest.mark.parametrize("name", STUBBORN)
def test_what_cannot_be_packed_takes_the_padded_path(model_folder, name):
    model = load(model_folder, name)
    assert model.backbone.causal
    assert not model.backbone.packs
    alone = np.stack([model.encode(text) for text in TEXTS])
    assert relative(model.encode(TEXTS), alone) < 1e-4


def test_packing_is_refused_where_it_is_not_exact(model_folder):
    with pytest.raises(UnsupportedError, match="cannot run packed"):
        load(model_folder, "t5", attn="packed")


def test_unknown_implementation_and_device(model_folder):
    with pytest.raises(ModelError, match="allowed: auto, packed, sdpa, eager"):
        load(model_folder, "llama", attn="flash")
    with pytest.raises(ModelError, match="device 'nowhere'"):
        load(model_folder, "llama", device="nowhere")
    with pytest.raises(ModelError, match="dtype 'float8'"):
        load(model_folder, "llama", dtype="float8")


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("pooling", ["last", "mean", "weighted_mean"])
def test_shared_prefixes_change_nothing(model_folder, name, pooling, monkeypatch):
    lead = "Instruct: retrieve passages that answer.\nQuery: "
    recipe = embedlm.Recipe.load(
        {"name": "t", "prompt": {"default": lead + "{text}"}, "pooling": {"kind": pooling}}
    ).override({"backbone.attention": "causal"})
    model = embedlm.load(model_folder(name), recipe=recipe)
    rows = model.render(TEXTS).ids
    assert any(pack.prefix >= 8 for pack in plan(rows, 10_000, share=True))
    alone = np.stack([model.encode(text) for text in TEXTS])
    assert relative(model.encode(TEXTS), alone) < 1e-4
    tokens = count_tokens(monkeypatch)
    assert relative(model.encode(TEXTS, batch_tokens=60), alone) < 1e-4
    prefix = common_prefix(min(rows), max(rows))
    assert len(tokens) > 2
    assert sum(tokens) == prefix + sum(len(row) - prefix for row in rows), "run once in all"


@pytest.mark.parametrize("layer", [0, 1, -2, -1, (1, 3)])
def test_a_chosen_layer_is_the_hidden_state_of_that_index(model_folder, layer):
    from transformers import AutoModel

    recipe = embedlm.Recipe.load("plain-mean").override({"pooling.layer": layer})
    model = embedlm.load(model_folder("llama"), recipe=recipe)
    reference = AutoModel.from_pretrained(model_folder("llama")).eval()
    for text in TEXTS[:2]:
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = reference(ids, output_hidden_states=True).hidden_states
        wanted = layer if isinstance(layer, tuple) else (layer,)
        mean = torch.stack([states[i] for i in wanted]).mean(0).mean(1)[0]
        np.testing.assert_allclose(model.encode(text), mean.numpy(), atol=1e-5)


def test_a_layer_that_is_not_there_is_refused(model_folder):
    recipe = embedlm.Recipe.load("plain-mean").override({"pooling.layer": 9})
    with pytest.raises(embedlm.errors.InputError, match=r"0 .embeddings. to 3"):
        embedlm.load(model_folder("llama"), recipe=recipe).encode(TEXTS)


def test_bfloat16_keeps_the_vectors_close(model_folder):
    whole = load(model_folder, "qwen3").encode(TEXTS)
    half = load(model_folder, "qwen3", dtype="bfloat16").encode(TEXTS)
    assert half.dtype == np.float32
    cosine = (whole * half).sum(1) / np.linalg.norm(whole, axis=1) / np.linalg.norm(half, axis=1)
    assert cosine.min() > 0.99


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=20),
    st.integers(1, 30),
    st.booleans(),
)
def test_a_plan_holds_every_row_once(rows, budget, share):
    packs = list(plan(rows, budget, share=share))
    items = sorted(i for pack in packs for i in pack.items.tolist())
    assert items == list(range(len(rows)))
    for pack in packs:
        inside = [rows[i] for i in pack.items.tolist()]
        assert pack.prefix < min(map(len, inside))
        assert pack.prefix <= common_prefix(min(inside), max(inside))
        own = sum(len(row) - pack.prefix for row in inside)
        assert len(inside) == 1 or pack.prefix + own <= max(budget, pack.prefix + budget // 2)


LEADS = [[1] * 40, [1] * 20 + [2] * 30, [3] * 60, [3] * 10 + [4] * 2, []]


@given(
    st.lists(
        st.tuples(st.sampled_from(LEADS), st.lists(st.integers(5, 7), min_size=1, max_size=9)),
        min_size=1,
        max_size=80,
    )
)
def test_groups_share_what_is_worth_it(parts):
    rows = [lead + own for lead, own in parts]
    groups = grouped(rows)
    assert sorted(i for g in groups for i in g.items.tolist()) == list(range(len(rows)))
    cost = 0
    for group in groups:
        prefix, own = group.prefix, [rows[i] for i in group.items.tolist()]
        assert prefix < min(map(len, own))
        assert prefix <= common_prefix(min(own), max(own))
        cost += prefix + sum(len(row) - prefix for row in own) + PACK_COST
    one = min(common_prefix(min(rows), max(rows)), min(map(len, rows)) - 1)
    one = one if one >= 4 and len(rows) > 1 else 0
    assert cost <= one + sum(len(row) - one for row in rows) + PACK_COST
    inner = grouped(rows, depth=DEPTH)
    assert sorted(i for g in inner for i in g.items.tolist()) == list(range(len(rows)))
    cost = own_tokens(inner, rows) + nested_tokens(inner) + len(inner) * PACK_COST
    assert cost <= one + sum(len(row) - one for row in rows) + PACK_COST
    for group in inner:
        assert all(group.prefix < len(rows[i]) for i in group.items.tolist())
        lengths = [level.length for level in group.levels]
        assert lengths == sorted(set(lengths))


@pytest.mark.parametrize("depth", [1, DEPTH])
def test_rows_that_each_begin_with_the_last_are_no_deep_nest(depth):
    rows = [[1] * i + [2] for i in range(1, 2048)]
    groups = grouped(rows, depth=depth)
    assert sorted(i for g in groups for i in g.items.tolist()) == list(range(len(rows)))
    assert max(len(group.levels) for group in groups) == depth
    assert own_tokens(groups, rows) + nested_tokens(groups) < sum(map(len, rows)) / 2


def own_tokens(groups, rows):
    return sum(len(rows[i]) - group.prefix for group in groups for i in group.items.tolist())


def nested_tokens(groups):
    """Return how many tokens of prefixes are run, each once and after what it begins with."""
    seen = {}
    for group in groups:
        before = 0
        for level in group.levels:
            seen[level] = level.length - before
            before = level.length
    return sum(seen.values())


def test_several_prefixes_in_one_batch_are_each_run_once(model_folder, monkeypatch):
    """Two long instructions, and texts without: no one declares what they share."""
    model = embedlm.load(model_folder("llama"), "e5-mistral", dtype="float32")
    leads = ["one two three four five six seven " * 4, "seven six five four three " * 5]
    texts = [f"{TEXTS[i % len(TEXTS)]} {i}" for i in range(36)]
    instructions = [leads[i % 3] if i % 3 < 2 else "" for i in range(36)]
    rows = model.render(texts, "query", instructions).ids
    groups = grouped(rows)
    assert sorted(group.prefix > 60 for group in groups) == [False, True, True]
    tokens = count_tokens(monkeypatch)
    for budget in (100_000, 300):
        tokens.clear()
        found = model.encode(texts, "query", instructions, batch_tokens=budget)
        wanted = sum(group.prefix for group in groups) + own_tokens(groups, rows)
        assert sum(tokens) == wanted < sum(map(len, rows)) / 2
    alone = [model.encode(t, "query", own) for t, own in zip(texts, instructions, strict=True)]
    assert relative(found, np.stack(alone)) < 1e-4


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_prefix_that_begins_with_another_is_run_after_it(
    model_folder, pooling, dtype, monkeypatch
):
    """All share a lead, two thirds one of two tasks after it: each token of them is run once."""
    recipe = {"name": "t", "prompt": {"default": "{text}"}, "pooling": {"kind": pooling}}
    model = embedlm.load(model_folder("qwen3"), recipe=recipe, dtype=dtype)
    lead = "one two three four five six seven " * 5
    tasks = [lead + "eight nine ten " * 6, lead + "seven six five four " * 7, lead]
    texts = [f"{tasks[i % 3]}{TEXTS[i % len(TEXTS)]} {i}" for i in range(45)]
    rows = model.render(texts).ids
    groups = grouped(rows, depth=DEPTH)
    assert sorted(len(group.levels) for group in groups) == [1, 2, 2]
    tokens = count_tokens(monkeypatch)
    for budget in (100_000, 400):
        tokens.clear()
        found = model.encode(texts, batch_tokens=budget)
        assert sum(tokens) == own_tokens(groups, rows) + nested_tokens(groups)
        flat = grouped(rows)
        assert sum(tokens) < sum(g.prefix for g in flat) + own_tokens(flat, rows)
        alone = np.stack([model.encode(text) for text in texts])
        assert relative(found, alone) < (1e-4 if dtype == "float32" else 5e-2)


def test_a_pack_that_does_not_fit_is_halved_and_the_size_remembered(model_folder):
    model = load(model_folder, "llama")
    run = model.executor.run
    sizes = []

    def small(rows, *, prefix=0, **options):
        sizes.append(prefix + sum(len(row) - prefix for row in rows))
        if sizes[-1] > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(rows, prefix=prefix, **options)

    model.executor.run = small
    texts = [f"{text} {i}" for i in range(5) for text in TEXTS]
    found = model.encode(texts)
    assert max(sizes) > 100
    first = len(sizes)
    assert model.executor.budget() <= 100
    assert relative(found, np.stack([model.encode(text) for text in texts])) < 1e-4
    sizes.clear()
    model.encode(texts)
    assert max(sizes) <= 100
    assert len(sizes) < first
    model.executor.run = lambda rows, **_: small([list(range(200))])
    with pytest.raises(embedlm.errors.JobError, match="too large for the memory"):
        model.encode(["one"])


def test_packs_of_a_job_are_about_equal():
    rows = [[i] * 10 for i in range(110)]
    sizes = [len(pack.items) * 10 for pack in plan(rows, 1000, share=False)]
    assert sizes == [550, 550]


@given(
    st.lists(st.text(max_size=40), min_size=1, max_size=8),
    st.sampled_from(["", "Query: ", 'This sentence : "', "a b c d e f g h i j k "]),
    st.sampled_from(["", '" means in one word:"', "."]),
    st.sampled_from(["last", "mean", "max"]),
)
@settings(max_examples=25)
def test_random_templates_and_texts(model_folder, texts, lead, tail, pooling):
    recipe = {
        "name": "t",
        "backbone": {"attention": "causal"},
        "prompt": {"default": lead + "{text}" + tail},
        "pooling": {"kind": pooling},
    }
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    model = embedlm.load(model_folder("llama"), recipe=recipe)
    together = model.encode(texts)
    alone = np.stack([model.encode(text) for text in texts])
    np.testing.assert_allclose(together, alone, atol=2e-4, rtol=1e-3)

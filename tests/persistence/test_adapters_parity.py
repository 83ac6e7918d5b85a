"""Adapters on a base give the reference's vectors: merged in order, or switched."""

import numpy as np
import pytest

import embedlm
from tests.parity import assert_close, expected, facts, folder, needs_parity, texts
from tests.persistence.test_systems_parity import assert_other

pytestmark = needs_parity

LLM2VEC = "05_llm2vec"
STAGES = {
    "base": [],
    "mntp": ["adapter_mntp"],
    "supervised": ["adapter_mntp", "adapter_supervised"],
}


def llm2vec(stage, **overrides):
    recipe = embedlm.Recipe.load("llm2vec").override(overrides)
    return embedlm.load(folder(LLM2VEC) / "base", recipe=recipe, adapters=STAGES[stage])


@pytest.mark.parametrize("stage", list(STAGES))
def test_llm2vec_merges_its_adapters_in_order(stage):
    model, wanted = llm2vec(stage), expected(LLM2VEC)
    instruction = facts(LLM2VEC)["instruction"]
    query = model.encode(texts(), role="query", instruction=instruction)
    tolerance = {"atol": 1e-4, "rtol": 1e-4, "cosine": 0.999999}
    assert_close(query, wanted[f"{stage}_query"], **tolerance)
    assert_close(model.encode(texts()), wanted[f"{stage}_document"], **tolerance)
    if stage == "mntp":
        assert_other(query, wanted["mntp_query_wrong_attention"])
    alone = np.stack([model.encode(t, role="query", instruction=instruction) for t in texts()])
    np.testing.assert_allclose(alone, query, atol=1e-4)


@pytest.mark.parametrize(
    ("array", "overrides"),
    [
        ("weighted_mean", {"pooling.kind": "weighted_mean"}),
        ("last_token", {"pooling.kind": "last"}),
        ("noskip", {"pooling.over": "all", "pooling.boundary": "offsets"}),
    ],
)
def test_llm2vec_pools_otherwise(array, overrides):
    model = llm2vec("supervised", **overrides)
    found = model.encode(texts(), role="query", instruction=facts(LLM2VEC)["instruction"])
    wanted = expected(LLM2VEC)[f"supervised_query_{array}"]
    assert_close(found, wanted, atol=1e-4, rtol=1e-4, cosine=0.999999)


def test_an_adapter_is_a_model_of_its_own():
    """Its config names the base; here the second adapter is put on the bare base."""
    found = embedlm.load(folder(LLM2VEC) / "adapter_mntp", recipe="llm2vec")
    wanted = expected(LLM2VEC)["mntp_document"]
    assert_close(found.encode(texts()), wanted, atol=1e-4, rtol=1e-4, cosine=0.999999)


JINA = "15_jina_v3_native"


@pytest.mark.parametrize("source", ["layout", "recipe", "given"])
def test_jina_switches_between_its_adapters(source):
    tasks = facts(JINA)["tasks"]
    options = {"recipe": None if source == "layout" else "jina-v3"}
    if source == "given":
        options |= {"adapters": [task["adapter"] for task in tasks.values()], "merge": False}
    model, wanted = embedlm.load(folder(JINA), **options), expected(JINA)
    assert set(model.adapters) == set(tasks)
    for _ in range(2):  # and back again
        for name in tasks:
            assert_close(model.encode(texts(), role=name), wanted[name], atol=2e-5)
            bare = model.encode(texts(), adapter=name)
            assert_close(bare, wanted[f"{name}_no_prefix"], atol=2e-5)
        assert_close(model.encode(texts()), wanted["no_adapter"], atol=2e-5)
    assert_close(model.encode_query(texts()), wanted["retrieval_query"], atol=2e-5)
    assert_close(model.encode_document(texts()), wanted["retrieval_passage"], atol=2e-5)
    alone = model.encode(texts(), role="text_matching", adapter=None)
    assert_close(alone, wanted["no_adapter"], atol=2e-5)
    with pytest.raises(embedlm.errors.InputError, match=r"adapter 'text'.*text_matching"):
        model.encode(texts(), adapter="text")


def test_a_switched_adapter_equals_the_same_one_merged():
    place = folder(JINA) / "adapters" / "text_matching"
    merged = embedlm.load(folder(JINA), "jina-v3", adapters=[place], merge=True)
    assert merged.adapters == ()
    wanted = expected(JINA)["text_matching"]
    assert_close(merged.encode(texts(), role="text_matching"), wanted, atol=2e-5)
    with pytest.raises(embedlm.errors.InputError, match="merge=False"):
        merged.encode(texts(), adapter="text_matching")


def test_switchable_adapters_are_saved(tmp_path):
    model = embedlm.load(folder(JINA))
    model.save_pretrained(tmp_path / "saved")
    again = embedlm.load(tmp_path / "saved")
    assert set(again.adapters) == set(model.adapters)
    for role in (None, *facts(JINA)["tasks"]):
        before, after = model.encode(texts(), role=role), again.encode(texts(), role=role)
        np.testing.assert_array_equal(before, after)


NV = "13_nvembed_v2"


@pytest.mark.parametrize("source", ["layout", "recipe"])
def test_nv_embed_attends_to_its_latents(source, tmp_path):
    model = embedlm.load(folder(NV), recipe=None if source == "layout" else "nv-embed-v2")
    wanted, options = expected(NV), {"role": "query", "max_length": 512}
    query = model.encode(texts(), **options)
    assert_close(query, wanted["query"], atol=2e-5)
    assert_close(query, wanted["query_unbatched"], atol=2e-5)
    assert_close(np.stack([model.encode(t, **options) for t in texts()]), query, atol=1e-5)
    assert_other(query, wanted["query_instruction_in_mean"])
    assert_close(model.encode(texts(), role="document"), wanted["document"], atol=2e-5)
    batch = model.render(texts()[:1], role="query")
    assert batch.ids[0] == facts(NV)["first_query_input_ids"]
    pooled = [embedlm.schema.recipe.SEGMENTS[i] in ("text", "eos") for i in batch.segments[0]]
    assert pooled.index(True) == facts(NV)["masked_positions_query"]
    model.save_pretrained(tmp_path / "saved")
    again = embedlm.load(tmp_path / "saved")
    np.testing.assert_array_equal(again.encode(texts(), **options), query)

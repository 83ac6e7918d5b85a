"""Prompting and pooling equal the reference implementations on their own checkpoints."""

import json

import numpy as np
import pytest

import embedlm
from tests.parity import assert_close, expected, facts, folder, needs_parity, texts

pytestmark = needs_parity

EOL_FAMILY = [
    ("PromptEOL", "prompteol", {}),
    ("zbw_PromptEOL", "prompteol", {}),
    ("zbw_PromptSTH", "promptsth", {}),
    ("zbw_PromptSUM", "promptsum", {}),
    ("zbw_Pretended_CoT", "pretended-cot", {}),
    ("zbw_Knowledge_Enhancement", "knowledge-enhancement", {}),
    ("no_template_last", "plain-last", {}),
    ("no_template_avg_unbatched", "plain-mean", {}),
]


@pytest.mark.parametrize("case", ["02_sgpt_gpt2", "02_sgpt_gptneo"])
def test_weighted_mean_of_a_sentence_transformers_folder(case):
    model = embedlm.load(folder(case))
    assert model.recipe.pooling.kind == "weighted_mean"
    wanted = expected(case)
    assert_close(model.encode(texts()), wanted["embedding"], atol=2e-5, rtol=1e-4)
    alone = np.stack([model.encode(text) for text in texts()])
    assert_close(alone, wanted["embedding_unbatched"], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("case", ["09_prompteol_opt", "09_prompteol_lm2"])
@pytest.mark.parametrize(("array", "name", "changes"), EOL_FAMILY)
def test_one_word_prompts(case, array, name, changes):
    recipe = embedlm.Recipe.load(name).override(changes)
    model = embedlm.load(folder(case), recipe=recipe)
    # The index grants these two cases 5e-4: their norms go up to 79.
    assert_close(model.encode(texts()), expected(case)[array], atol=5e-4, cosine=0.999999)


@pytest.mark.parametrize("name", ["metaeol", "prompteol"])
def test_metaeol(name):
    model = embedlm.load(folder("10_metaeol"), recipe=name)
    wanted = expected("10_metaeol")[name]
    assert_close(model.encode(texts()), wanted, atol=5e-4, cosine=0.999999)


def test_echo_renders_the_reference_ids_and_mask():
    case = facts("11_echo")
    model = embedlm.load(folder("11_echo"), recipe="echo")
    batch = model.render(texts()[:1], role="query", instruction=case["prompt"])
    assert batch.ids[0] == case["first_query"]["input_ids"]
    pooled = [embedlm.schema.recipe.SEGMENTS[s] in ("repeat", "eos") for s in batch.segments[0]]
    assert pooled == [bool(flag) for flag in case["first_query"]["embed_mask"]]


@pytest.mark.parametrize("role", ["query", "document"])
@pytest.mark.parametrize("kind", ["mean", "last"])
def test_echo(role, kind):
    model = embedlm.load(folder("11_echo"), recipe=f"echo-{kind}")
    instruction = facts("11_echo")["prompt"] if role == "query" else None
    found = model.encode(texts(), role=role, instruction=instruction)
    wanted = expected("11_echo")[f"{role}_{kind}"]
    assert_close(found, wanted, atol=5e-5, rtol=1e-4, cosine=0.999999)


@pytest.mark.parametrize(("role", "word"), [("query", "query"), ("document", "passage")])
def test_promptreps_dense_and_logits(role, word):
    model = embedlm.load(folder("12_promptreps"), recipe="promptreps-raw")
    whole = {"sparse": {"restrict": "none", "top_k": None}}
    found = model.encode(texts(), role=role, heads=["dense", whole])
    wanted = expected("12_promptreps")
    assert_close(found.dense, wanted[f"dense_{word}"], atol=2e-5)
    assert_close(found.sparse.toarray(), wanted[f"logits_{word}"], atol=1e-4)


@pytest.mark.parametrize(("role", "word"), [("query", "query"), ("document", "passage")])
@pytest.mark.parametrize("expand", [0, 5])
def test_promptreps_sparse_words(role, word, expand):
    model = embedlm.load(folder("12_promptreps"), recipe="promptreps-raw")
    # The reference ran with a short stand-in for NLTK's list of stop words.
    head = {"sparse": {"expand": expand}}
    found = model.encode(texts(), role=role, heads=[head]).sparse
    file = folder("12_promptreps") / "expected_sparse.json"
    wanted = json.loads(file.read_text())[word + ("_expand5" if expand else "")]
    names = {index: token for token, index in model.tokenizer.get_vocab().items()}
    for row, reference in enumerate(wanted):
        ours = {names[i]: float(100 * w) for i, w in zip(*_row(found, row), strict=True)}
        for token in {*ours, *reference}:
            # Integers may differ by one at a rounding tie; zeros are not stored.
            assert abs(round(ours.get(token, 0)) - reference.get(token, 0)) <= 1, (row, token)


def _row(matrix, row):
    start, end = matrix.indptr[row], matrix.indptr[row + 1]
    return matrix.indices[start:end], matrix.data[start:end]


@pytest.mark.parametrize("source", ["layout", "recipe"])
def test_splade(source):
    wanted = expected("16_splade")
    model = embedlm.load(folder("16_splade"), recipe="splade" if source == "recipe" else None)
    found = model.encode(texts())
    assert_close(found.sparse.toarray(), wanted["max_pooling"], atol=1e-4)
    assert_close(model.similarity(found, found), wanted["scores"], atol=1e-3, rtol=1e-5)
    summed = model.encode(texts(), heads=[{"sparse": {"reduce": "sum"}}])
    assert_close(summed.sparse.toarray(), wanted["sum_pooling"], atol=1e-4, rtol=1e-5)
    top = model.encode(texts(), heads=[{"sparse": {"top_k": 16}}])
    assert_close(top.sparse.toarray(), wanted["max_pooling_top16"], atol=1e-4)


def test_embeddings_of_several_heads_have_a_length():
    model = embedlm.load(folder("12_promptreps"), recipe="promptreps-raw")
    assert len(model.encode(texts())) == len(texts())

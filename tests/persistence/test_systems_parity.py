"""Published systems give their own vectors, from their layout alone and by the recipe's name."""

import numpy as np
import pytest

import embedlm
from tests.parity import assert_close, expected, facts, folder, needs_parity, texts

pytestmark = needs_parity


def loaded(case, recipe, source):
    return embedlm.load(folder(case), recipe=recipe if source == "recipe" else None)


def assert_other(found, control):
    """A negative control: every row is far from what a correct run gives."""
    assert (np.abs(found - control).max(1) > 1e-3).all()


both = pytest.mark.parametrize("source", ["layout", "recipe"])


@both
@pytest.mark.parametrize(
    ("case", "recipe", "role"),
    [("01_e5_mistral", "e5-mistral", "web_search_query"), ("08_gte_qwen2", "gte-qwen2", "query")],
)
def test_instruct_before_the_query_and_the_last_token(case, recipe, role, source):
    model = loaded(case, recipe, source)
    about, wanted = facts(case), expected(case)
    instruction = about["query_prompt"].removeprefix("Instruct: ").removesuffix("\nQuery: ")
    asked = [{"role": role}, {"role": "query"}, {"role": "query", "instruction": instruction}]
    for options in [*asked, {"instruction": instruction}]:
        assert_close(model.encode(texts(), **options), wanted["query"], atol=1e-5)
    for options in ({}, {"role": "document"}, {"instruction": ""}):
        assert_close(model.encode(texts(), **options), wanted["document"], atol=1e-5)
    alone = np.stack([model.encode(text) for text in texts()])
    assert_close(alone, wanted["document_unbatched"], atol=1e-5)
    assert_other(alone, wanted["document_wrong_attention"])
    assert model.render(texts()[:1], role="query").ids[0] == about["first_query_input_ids"]
    assert model.backbone.causal == (about["attention"] == "causal")


@both
def test_instructor_leaves_the_instruction_out_and_projects(source):
    case = "03_instructor"
    model = loaded(case, "instructor", source)
    about, wanted = facts(case), expected(case)
    given = about["instruction"]
    for role in ("query", "document"):
        found = model.encode(texts(), role=role, instruction=given[role])
        assert_close(found, wanted[role], atol=2e-5)
    assert_close(model.encode(texts()), wanted["no_instruction"], atol=2e-5)
    query = model.encode(texts(), instruction=given["query"])
    assert_other(query, wanted["query_instruction_in_mean"])
    batch = model.render(texts()[:1], instruction=given["query"])
    assert batch.ids[0] == about["first_query"]["input_ids"]
    left_out = about["first_query"]["instruction_tokens_left_out"]
    segments = [embedlm.schema.recipe.SEGMENTS[i] for i in batch.segments[0]]
    assert [s in ("text", "eos") for s in segments].index(True) == left_out
    assert segments[-1] == "eos"


@both
def test_gritlm_pools_the_text_alone_and_looks_both_ways(source):
    case = "04_gritlm"
    model = loaded(case, "gritlm", source)
    given, wanted = facts(case)["instruction"], expected(case)
    skip = facts(case).get("nan_rows", ())
    query = model.encode(texts(), role="query", instruction=given)
    assert_close(query, wanted["query"], atol=2e-5, skip=skip)
    assert_close(model.encode(texts(), role="document"), wanted["document"], atol=2e-5, skip=skip)
    raw = model.encode(texts(), instruction=given, normalize=False)
    assert_close(raw, wanted["query_unnormalised"], atol=1e-4, cosine=0.999999, skip=skip)
    assert_other(query, wanted["query_wrong_attention"])
    assert_other(query, wanted["query_instruction_in_mean"])


@both
def test_gritlm_gives_a_vector_where_nothing_is_left_to_pool(source):
    model = loaded("04_gritlm", "gritlm", source)
    for texts_left in (["", "a"], ["\n", ""]):
        vectors = model.encode(texts_left, instruction="Find it")
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


@both
def test_bge_icl_with_and_without_examples(source):
    case = "06_bge_icl"
    model = loaded(case, "bge-icl", source)
    about, wanted = facts(case), expected(case)
    options = {"role": "query", "instruction": about["instruction"]}
    shots = about["examples"]
    few = model.encode(texts(), demonstrations=shots, **options)
    assert_close(few, wanted["query_fewshot"], atol=2e-5)
    assert_close(model.encode(texts(), **options), wanted["query_zeroshot"], atol=2e-5)
    assert_close(model.encode(texts(), role="document"), wanted["document"], atol=2e-5)
    cut = model.encode(texts(), demonstrations=shots, max_length=64, **options)
    assert_close(cut, wanted["query_fewshot_len64"], atol=2e-5)
    batch = model.render(texts()[:1], demonstrations=shots, **options)
    assert batch.ids[0] == about["first_query_fewshot_input_ids"]


@pytest.mark.parametrize("case", ["02_sgpt_gpt2", "02_sgpt_gptneo"])
def test_symmetric_sgpt_by_its_recipe(case):
    model = embedlm.load(folder(case), recipe="sgpt")
    assert_close(model.encode(texts()), expected(case)["embedding"], atol=2e-5, rtol=1e-4)


def test_asymmetric_sgpt_puts_one_bracket_token_on_each_side():
    model = embedlm.load(folder("02_sgpt_gpt2"), recipe="sgpt-asymmetric")
    encode = model.tokenizer.backend_tokenizer.encode
    for role, (left, right) in {"query": "[]", "document": "{}"}.items():
        batch = model.render(texts(), role=role, max_length=20)
        for ids, text in zip(batch.ids, texts(), strict=True):
            inner = encode(text, add_special_tokens=False).ids[:20]
            assert ids == [*encode(left).ids, *inner, *encode(right).ids]


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("01_e5_mistral", {"role": "query"}),
        ("03_instructor", {"instruction": "Represent the question: "}),
        ("04_gritlm", {"instruction": "Given a title, retrieve the abstract"}),
        ("06_bge_icl", {"role": "query", "demonstrations": [{"query": "a", "response": "b"}]}),
        ("08_gte_qwen2", {"role": "query"}),
    ],
)
def test_published_layouts_survive_saving(case, options, tmp_path):
    model = embedlm.load(folder(case))
    model.save_pretrained(tmp_path / "saved")
    again = embedlm.load(tmp_path / "saved")
    assert again.recipe == model.recipe
    assert again.dim == model.dim
    assert again.backbone.causal == model.backbone.causal
    found = again.encode(texts(), **options)
    np.testing.assert_allclose(found, model.encode(texts(), **options), atol=1e-6)

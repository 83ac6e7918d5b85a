"""Fields that have no effect beside others are refused where they are given."""

from pathlib import Path

import pytest

import embedlm
from embedlm import Recipe
from embedlm.errors import RecipeError
from embedlm.schema.base import validated
from embedlm.schema.pipeline import Pipeline
from embedlm.schema.recipe import recipes
from embedlm.schema.rerank import Method

RECIPES = Path(embedlm.__file__).parent / "recipes"
SIF = {"kind": "mean", "weights": "sif"}
WORDS = {"restrict": "text"}
ROWS = [
    ({"pooling": {"sif_a": 0.1}}, "pooling.sif_a", {"pooling": {**SIF, "sif_a": 0.1}}),
    (
        {"pooling": {"kind": "last", "weights": "idf"}},
        "pooling.weights",
        {"pooling": {"kind": ["last", "mean"], "weights": "idf"}},
    ),
    (
        {"pooling": {"boundary": "count_text"}},
        "pooling.boundary",
        {"pooling": {"boundary": "count_text", "over": ["text"]}},
    ),
    (
        {"heads": [{"sparse": {"stop_words": "none"}}]},
        "heads.sparse.stop_words",
        {"heads": [{"sparse": {**WORDS, "stop_words": "none"}}]},
    ),
    (
        {"heads": ["dense", {"sparse": {"fallback_top_k": 3}}]},
        "heads.sparse.fallback_top_k",
        {"heads": ["dense", {"sparse": {**WORDS, "fallback_top_k": 3}}]},
    ),
    (
        {"prompt": {"instruction": "Find it"}},
        "prompt.instruction",
        {"prompt": {"instruction": "Find it", "roles": {"x": "{instruction}{text}"}}},
    ),
    (
        {"prompt": {"instruction_end": "full_stop", "query": "{text}"}},
        "prompt.instruction_end",
        {
            "prompt": {
                "instruction_end": "full_stop",
                "query": [
                    {"role": "system", "content": "{instruction}"},
                    {"role": "user", "content": "{text}"},
                ],
            }
        },
    ),
    (
        {"prompt": {"separator": "\n"}},
        "prompt.separator",
        {"prompt": {"separator": "\n", "default": "{demonstrations}{text}"}},
    ),
    (
        {"prompt": {"demonstration": "{query}"}},
        "prompt.demonstration",
        {"prompt": {"demonstration": "{query}", "query": ["{text}", "{demonstrations}{text}"]}},
    ),
    (
        {"backbone": {"kind": "static", "attention": "causal"}},
        "backbone.attention",
        {"backbone": {"attention": "causal"}},
    ),
    (
        {"backbone": {"kind": "static", "sliding_window": 5}},
        "backbone.sliding_window",
        {"backbone": {"sliding_window": 5}},
    ),
]


@pytest.mark.parametrize(("fields", "name", "read"), ROWS)
def test_a_field_without_effect_is_refused_where_it_is_given(fields, name, read, tmp_path):
    file = tmp_path / "mine.yaml"
    told = rf"{name} is .* and has no effect: .*; leave it out \(its default is"
    for source in (fields, {**fields, "name": "mine"}):
        with pytest.raises(RecipeError, match=told):
            Recipe.load(source)
    file.write_text(Recipe.model_validate({"name": "mine", **fields}).dump())
    with pytest.raises(RecipeError, match=rf"mine\.yaml: {told}"):
        Recipe.load(file)
    with pytest.raises(RecipeError, match=told):
        Recipe.load("plain-last").override(fields)
    assert Recipe.load(read)
    # A model that was saved with it stays open.
    file.rename(tmp_path / "embedlm.yaml")
    assert Recipe.load(tmp_path).name == "mine"


def test_defaults_that_are_written_out_are_no_fault():
    for name in ("plain-last", "static-mean", "splade"):
        whole = Recipe.load(name).model_dump(mode="json")
        assert Recipe.load(whole) == Recipe.load(name)


def test_a_changed_line_leaves_what_the_old_one_was_read_with():
    changed = Recipe.load("e5-mistral").override({"prompt.query": "{text}"})
    assert changed.prompt.instruction is not None
    assert Recipe.load("promptreps").override({"heads.sparse.restrict": "none"})
    assert Recipe.load("gritlm").override({"pooling.over": "all"})
    with pytest.raises(RecipeError, match=r"heads\.sparse\.stop_words is 'english'"):
        Recipe.load("splade").override({"heads.0.stop_words": "english"})


@pytest.mark.parametrize("name", recipes())
def test_no_built_in_recipe_has_such_a_field(name):
    assert Recipe.load(RECIPES / f"{name}.yaml") == Recipe.load(name)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"kind": "classifier", "divisor": 2}, "divisor .* asks for no answer"),
        ({"kind": "classifier", "yes": "1"}, "yes .* asks for no answer"),
        ({"template": "{query} {text}", "instruction": "x"}, r"instruction .* no \{instruction\}"),
        ({"kind": "classifier", "instruction": "x"}, "instruction .* has no effect"),
        ({"kind": "classifier", "special_tokens": "none"}, "special_tokens .* joins the pair"),
        ({"template": None, "special_tokens_in_text": "refuse"}, "special_tokens_in_text"),
    ],
)
def test_re_rankers(fields, told):
    with pytest.raises(RecipeError, match=told):
        validated(Method, fields, "a re-ranker")


ASKS = {"kind": "generate", "prompt": "{passage}", "into": "query"}


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ({**ASKS, "example": "{a}", "examples": [{"a": "b"}]}, r"\{examples\}"),
        ({**ASKS, "prompt": "{passage}{examples}", "examples": [{"a": "b"}]}, "`example`"),
        ({**ASKS, "each": "queries"}, "none of the answer's fields"),
        ({**ASKS, "fields": {"query": {"choices": ["a"]}}}, "kind: choice"),
        ({**ASKS, "fields": {"query": {"kind": "choice"}}}, "needs some"),
        (
            {**ASKS, "fields": {"query": {"kind": "choice", "choices": ["a"], "most": 3}}},
            "leave least and most out",
        ),
        ({"kind": "filter", "by": "logprob", "keep": 3, "field": "x"}, "by: field"),
        ({"kind": "relabel", "likelihood": "{candidate}"}, "relevance, and its prompt is empty"),
    ],
)
def test_pipelines(step, told):
    with pytest.raises(RecipeError, match=told):
        Pipeline.load({"steps": [step, {"kind": "write"}]})

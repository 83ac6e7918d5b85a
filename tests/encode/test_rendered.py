"""What was rendered before a call is not rendered again, and the vectors are the same."""

import numpy as np
import pytest

import embedlm
from embedlm.encode.rendered import rendered
from embedlm.errors import InputError

TEXTS = ["Plants make food.", "A dog runs.", "Plants make food.", "word " * 600]


@pytest.fixture
def model(tiny_llama):
    recipe = embedlm.Recipe.load("e5-mistral").override(
        {"pooling": {"kind": "mean", "over": "text"}}
    )
    return embedlm.load(tiny_llama, recipe, device="cpu")


@pytest.fixture
def tokenised(model, monkeypatch):
    """Return the number of texts of each call of the tokenizer, as they come."""
    counts = []
    rows = model.renderer._rows
    whole = rows.tokenize
    monkeypatch.setattr(
        rows, "tokenize", lambda given, *a, **k: counts.append(len(given)) or whole(given, *a, **k)
    )
    return counts


def test_rendered_texts_give_the_same_vectors_and_are_not_tokenised_again(model, tokenised):
    how = {"role": "query", "instruction": "Find facts.", "max_length": 60}
    expected = model.encode(TEXTS, **how)
    ready = rendered(model.renderer, TEXTS, **how)
    assert [one.truncated for one in ready] == [False, False, False, True]
    assert ready[0].tokens == len(model.render(TEXTS[:1], **how).ids[0])
    tokenised.clear()
    np.testing.assert_allclose(model.encode(ready, **how), expected, atol=1e-6)
    assert tokenised == []


@pytest.mark.parametrize(
    "other", [{"role": "document"}, {"role": "query", "max_length": 70}, {"prompt": "Say: "}]
)
def test_a_call_that_asks_for_another_prompt_renders_anew(model, tokenised, other):
    ready = rendered(model.renderer, TEXTS, "query", "Find facts.")
    np.testing.assert_allclose(
        model.encode(ready, **other), model.encode(TEXTS, **other), atol=1e-6
    )
    assert tokenised


def test_segments_that_were_left_out_are_found(model, tokenised):
    ready = rendered(model.renderer, TEXTS[:2], "query", segments=False)
    tokenised.clear()
    np.testing.assert_allclose(
        model.encode(ready, "query"), model.encode(TEXTS[:2], "query"), atol=1e-6
    )
    assert len(tokenised) == 2


def test_what_cannot_be_rendered_is_refused(model):
    with pytest.raises(InputError, match="role"):
        rendered(model.renderer, TEXTS, "nope")
    with pytest.raises(InputError, match="surrogate"):
        rendered(model.renderer, ["\ud800"])

"""The short way for a text in a frame gives what the long way gives, or is not taken."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedlm.errors import InputError, UnsupportedError
from embedlm.prompt.render import Renderer, Request
from embedlm.schema.recipe import Recipe, recipes
from tests.models import build_tokenizer

TOKENIZERS = {kind: build_tokenizer(kind) for kind in ("decoder", "encoder")}
TEXTS = [
    "plants make food",
    " ",
    "",
    "a</s>b",
    "full-width ＜/s＞",
    "x " * 300,
    "Ünïcode 日本語 🌱\n",
]


def both(tokenizer, recipe, limit=None, positions=None):
    """Return a renderer, and one that has the long way alone."""
    short, long = (
        Renderer(tokenizer, recipe.prompt, limit=limit, positions=positions) for _ in range(2)
    )
    long._frame = lambda *_: None
    return short, long


def outcome(renderer, texts, request):
    try:
        return renderer.render(texts, request, segments=False)
    except (InputError, UnsupportedError) as error:
        return str(error)


def same(short, long, texts, request=Request()):  # noqa: B008  # frozen
    found, expected = outcome(short, texts, request), outcome(long, texts, request)
    assert isinstance(found, list) == isinstance(expected, list)
    if isinstance(expected, str):
        assert found == expected
        return False
    for one, other in zip(found, expected, strict=True):
        assert one.ids == other.ids
        assert one.text == other.text
        assert one.truncated == other.truncated
        assert one.unseen == other.unseen
    return short._usual(request).frame is not None


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_recipe_gives_the_same_by_both(kind):
    framed = 0
    for name in recipes():
        recipe = Recipe.load(name)
        for limits in ({}, {"limit": 12}, {"positions": 16}):
            try:
                short, long = both(TOKENIZERS[kind], recipe, **limits)
            except UnsupportedError:  # queries that are filled up beyond these positions
                continue
            for role in (None, *short.roles()):
                for texts in ([], *([text] for text in TEXTS), TEXTS[:2], TEXTS):
                    framed += same(short, long, texts, Request(role))
    assert framed > 500


@pytest.mark.parametrize("rule", ["text", "tokens", "refuse"])
@pytest.mark.parametrize("template", ["{text}", "a {text} b", "{instruction}: {text}</s>"])
@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text() | st.sampled_from(["</s>", "<s> a", "a b"]), max_size=4),
    instruction=st.sampled_from(["", "find", "</s> find"]),
    limit=st.none() | st.integers(4, 20),
)
def test_any_text_gives_the_same_by_both(template, rule, texts, instruction, limit):
    prompt = {"default": template, "special_tokens_in_text": rule}
    if "instruction" in template:
        prompt["instruction"] = instruction
    recipe = Recipe.load({"prompt": prompt})
    same(*both(TOKENIZERS["decoder"], recipe, limit=limit), texts)


def test_a_text_in_a_frame_takes_the_short_way():
    recipe = Recipe.load({"prompt": {"default": "query: {text}", "max_length": 8}})
    short, _ = both(TOKENIZERS["decoder"], recipe)
    taken = []
    short._rows.tokenize = lambda *rows, **_: taken.append(rows) or (1 / 0)
    (batch,) = short.render(["food", "light"], Request(), segments=False)
    assert [len(row) for row in batch.segments] == [0, 0]
    for texts in (["food " * 9], [""], ["</s>"]):
        with pytest.raises(ZeroDivisionError):
            short.render(texts, Request(), segments=False)
    assert len(taken) == 3

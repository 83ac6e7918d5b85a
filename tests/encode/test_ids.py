"""Token ids in the place of texts."""

import numpy as np
import pytest

import embedlm
from embedlm.errors import InputError

TEXTS = ["a river", "the engine of a boat", "music", "a river"]


@pytest.mark.parametrize("recipe", ["plain-mean", "plain-last", "prompteol", "weighted-mean"])
@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_rendered_ids_give_the_vectors_of_their_texts(tiny_llama, recipe, kind):
    model = embedlm.load(tiny_llama, recipe, device="cpu")
    if recipe == "weighted-mean":
        recipe = model.recipe.override({"pooling.over": "all"})
        model = embedlm.load(tiny_llama, recipe, device="cpu")
    rows = [kind(ids) for ids in model.render(TEXTS).ids]
    np.testing.assert_array_equal(model.encode(rows), model.encode(TEXTS))
    assert len(list(model.stream(iter(rows)))) == len(TEXTS)


def test_every_head_reads_ids(tiny_llama):
    model = embedlm.load(tiny_llama, "plain-mean", device="cpu", lm_head=True)
    heads = ["dense", {"sparse": {"top_k": 5, "restrict": "text"}}, "multi_vector"]
    rows = model.render(TEXTS).ids
    found = model.encode(rows, heads=heads)
    assert found.sparse.shape == (4, model.backbone.vocab_size)
    assert [len(v) for v in found.multi_vector] == [len(row) for row in rows]


@pytest.mark.parametrize(
    ("rows", "options", "what"),
    [
        ([[1, 2], "text"], {}, "texts or ids, not both"),
        ([[1, 2], []], {}, "holds no token id"),
        ([[1, 2.5]], {}, "no token id"),
        ([[1, 10**6]], {}, "not in the vocabulary"),
        ([[1, -1]], {}, "not in the vocabulary"),
        ([[1] * 9], {"max_length": 8}, "longer than 8"),
        ([[1, 2]], {"instruction": "find"}, "run as they are"),
        ([[1, 2]], {"prompt": "query: "}, "run as they are"),
    ],
)
def test_ids_that_cannot_be_run(tiny_llama, rows, options, what):
    model = embedlm.load(tiny_llama, "plain-mean", device="cpu")
    with pytest.raises(InputError, match=what):
        model.encode(rows, **options)


def test_ids_are_not_rewritten_nor_counted(tiny_llama):
    model = embedlm.load(tiny_llama, "static-sif", device="cpu")
    with pytest.raises(InputError, match="not a string"):
        model.fit([[1, 2]])

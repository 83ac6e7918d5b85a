"""What a recipe says of a role, by its name."""

import pytest

from embedlm.errors import RecipeError
from embedlm.schema.recipe import Recipe


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": {"max_length": {"document": 64, "querry": 32}}},
        {"prompt": {"instruction": {"querry": "find"}}},
        {"prompt": {"expansion": {"role": "querry"}}},
        {"backbone": {"adapter_roles": {"querry": "retrieval"}}},
    ],
)
def test_what_is_said_of_a_role_that_is_not_there_is_refused(change):
    with pytest.raises(RecipeError) as caught:
        Recipe.load(change)
    message = str(caught.value)
    (part, fields), *_ = change.items()
    assert f"{part}.{next(iter(fields))}: 'querry' is no role of this recipe" in message
    assert "there are query, document, default. Did you mean 'query'?" in message
    prompt = {"roles": {"querry": "{text}"}, **change.get("prompt", {})}
    assert Recipe.load({**change, "prompt": prompt})

"""A published checkpoint is known by its hub id."""

from embedlm import recipes
from embedlm.persistence.published import recipe_of_checkpoint
from embedlm.schema.recipe import Recipe


def test_every_checkpoint_has_the_first_recipe_that_names_it():
    named = {}
    for name in recipes():
        for checkpoint in Recipe.load(name).checkpoints:
            named.setdefault(checkpoint, name)
    assert len(named) > 50
    found = {one: recipe_of_checkpoint(one.upper()).name for one in named}
    assert found == named
    assert recipe_of_checkpoint("nobody/nothing") is None
    assert recipe_of_checkpoint(next(iter(named))[:-1]) is None  # a part of an id is no id

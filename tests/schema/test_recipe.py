"""The schema of recipes: what is refused and how it says so; overrides, files, dumps."""

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from embedlm.errors import EmbedLMError, RecipeError, TemplateError
from embedlm.schema.recipe import (
    POOLINGS,
    SEGMENTS,
    Dense,
    MultiVector,
    Recipe,
    Sparse,
    parse_head,
    recipes,
)
from embedlm.schema.unread import without_effect

PLAIN = {"name": "mine", "prompt": {"default": "{text}"}}


def refused(change):
    """Return the complaint about a recipe with these fields."""
    with pytest.raises(RecipeError) as caught:
        Recipe.load({**PLAIN, **change})
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- unknown fields and values ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field", "allowed", "hint"),
    [
        ({"poolin": {}}, "poolin", "backbone, prompt, image, pooling, heads", "pooling"),
        ({"pooling": {"knid": "mean"}}, "pooling.knid", "kind, over, boundary, layer", "kind"),
        ({"prompt": {"qery": "{text}"}}, "prompt.qery", "default, query, document", "query"),
        ({"backbone": {"atention": "causal"}}, "backbone.atention", "attention", "attention"),
        ({"heads": [{"sparse": {"topk": 3}}]}, "topk", "top_k, restrict", "top_k"),
    ],
)
def test_unknown_field_names_itself_the_allowed_ones_and_the_nearest(change, field, allowed, hint):
    message = refused(change)
    assert message.startswith("mine: ")
    assert f"{field}: unknown field" in message
    assert allowed in message
    assert f"Did you mean {hint!r}?" in message


def test_unknown_field_of_a_stage_lists_the_stages_fields():
    loss = {"kind": "info_nce", "temprature": 0.05}
    message = refused({"tuning": {"stages": [{"name": "one", "objective": [loss]}]}})
    assert "tuning.stages.0.objective.0.temprature: unknown field" in message
    assert "allowed here: kind, weight, temperature" in message


def test_unknown_field_of_a_chat_turn_lists_its_fields():
    turn = {"role": "user", "content": "{text}", "nmae": "x"}
    message = refused({"prompt": {"query": [turn]}})
    assert "prompt.query.0.nmae: unknown field" in message
    assert "allowed here: role, content" in message


@pytest.mark.parametrize(
    ("change", "place", "allowed"),
    [
        ({"pooling": {"kind": "avg"}}, "pooling.kind", POOLINGS),
        ({"pooling": {"over": "txt"}}, "pooling.over.0", SEGMENTS),
        ({"pooling": {"over": ["text", "txt"]}}, "pooling.over.1", SEGMENTS),
        ({"pooling": {"over": []}}, "pooling.over", ("at least 1",)),
        ({"pooling": {"layer": []}}, "pooling.layer", ("at least 1",)),
        ({"pooling": {"sif_a": 0}}, "pooling.sif_a", ("greater than 0",)),
        ({"pooling": {"layer": "last"}}, "pooling.layer", ("integer",)),
        ({"backbone": {"attention": "both"}}, "backbone.attention", ("causal", "bidirectional")),
        ({"backbone": {"sliding_window": -1}}, "backbone.sliding_window", ("'off'", "than 0")),
        ({"prompt": {"max_length": 0}}, "prompt.max_length", ("greater than 0",)),
        ({"prompt": {"clean": "wash"}}, "prompt.clean", ("none", "strip", "promptbert")),
        ({"similarity": "l2"}, "similarity", ("cosine", "dot")),
        ({"backbone": {"adapter_roles": {"query": "a/b"}}}, "adapter_roles.query", ("slashes",)),
        ({"normalize": "perhaps"}, "normalize", ("boolean",)),
        ({"prompt": {"default": [{"role": "me", "content": "{text}"}]}}, "0.role", ("assistant",)),
    ],
)
def test_wrong_value_says_where_what_and_what_is_allowed(change, place, allowed):
    message = refused(change)
    assert f"{place}: " in message
    assert "(given " in message
    assert all(word in message for word in allowed)


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{tex}", "Did you mean 'text'?"),
        ("no slot", "has no {text}"),
        ("{text", "'{{'"),
        ("{text} {?instruction}{instruction}", "not closed"),
        ([], "empty"),
        ({"text": None}, "quotes"),
        (7, "string"),
    ],
)
def test_wrong_template(template, complaint):
    assert complaint in refused({"prompt": {"default": template}})


def test_template_errors_of_every_place_are_found():
    for field in ("default", "query", "document"):
        assert "{txt}" in refused({"prompt": {field: "{txt}"}})
    assert "{txt}" in refused({"prompt": {"roles": {"mine": ["{text}", "{txt}"]}}})
    demonstration = {"default": "{demonstrations}{text}", "demonstration": "{word}"}
    assert "{word}" in refused({"prompt": demonstration})


def test_errors_form_one_tree():
    assert issubclass(TemplateError, RecipeError)
    assert issubclass(RecipeError, EmbedLMError)
    assert issubclass(RecipeError, ValueError)


# -- heads -----------------------------------------------------------------------------------------


def test_heads_take_names_and_options():
    recipe = Recipe.load(
        {**PLAIN, "heads": ["dense", {"sparse": {"top_k": 128, "restrict": "text"}}]}
    )
    assert recipe.heads == (Dense(), Sparse(top_k=128, restrict="text"))
    assert Recipe.load({**PLAIN, "heads": "multi_vector"}).heads == (MultiVector(),)
    assert Recipe.load({**PLAIN, "heads": {"sparse": None}}).heads == (Sparse(),)
    assert Recipe.load(PLAIN).heads == (Dense(),)


def test_a_heads_options_go_on_top_of_the_recipes():
    own = (Dense(), Sparse(top_k=128, restrict="text", reduce="pool"))
    assert parse_head("sparse", own) == own[1]
    assert parse_head({"sparse": {"top_k": None}}, own) == own[1].model_copy(update={"top_k": None})
    assert parse_head({"kind": "sparse", "restrict": None}, own).restrict == "none"
    assert parse_head(own[1]) is own[1]


@pytest.mark.parametrize("heads", [[], None, 3, [3], ["dense", "dense"], [{"sparse": 3}]])
def test_heads_that_cannot_be(heads):
    assert "heads: " in refused({"heads": heads})


def test_an_unknown_head_names_the_known_ones():
    message = refused({"heads": ["dence"]})
    assert "dense, sparse, multi_vector" in message
    assert "Did you mean 'dense'?" in message


def test_one_segment_may_stand_without_a_list():
    assert Recipe.load({**PLAIN, "pooling": {"over": "text"}}).pooling.over == ("text",)
    assert Recipe.load({**PLAIN, "pooling": {"over": "all"}}).pooling.over == "all"


@pytest.mark.parametrize(("value", "rule"), [(True, "prompteol"), (False, "none"), (None, "none")])
def test_clean_takes_a_flag(value, rule):
    assert Recipe.load(PLAIN).override({"prompt.clean": value}).prompt.clean == rule


# -- loading ---------------------------------------------------------------------------------------


def test_load_takes_a_name_a_mapping_a_file_a_folder_and_a_recipe(tmp_path):
    recipe = Recipe.load("prompteol")
    assert recipe.name == "prompteol"
    assert Recipe.load(recipe) is recipe
    assert Recipe.load(yaml.safe_load(recipe.dump())) == recipe
    (tmp_path / "embedlm.yaml").write_text(recipe.dump(), encoding="utf-8")
    assert Recipe.load(tmp_path) == recipe
    assert Recipe.load(str(tmp_path / "embedlm.yaml")) == recipe


def test_a_file_without_a_name_is_called_by_its_own(tmp_path):
    (tmp_path / "house-style.yaml").write_text('prompt: {default: "{text}"}')
    assert Recipe.load(tmp_path / "house-style.yaml").name == "house-style"
    (tmp_path / "other.json").write_text('{"prompt": {"default": "{text}"}}')
    assert Recipe.load(tmp_path / "other.json").name == "other"
    assert Recipe.load({"prompt": {"default": "{text}"}}).name == "custom"


def test_a_folder_of_a_recipes_name_does_not_hide_it(tmp_path, monkeypatch):
    (tmp_path / "echo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert Recipe.load("echo").name == "echo"


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(RecipeError, match=r"'promteol' is no recipe.*Did you mean 'prompteol'\?"):
        Recipe.load("promteol")


@pytest.mark.parametrize("source", ["", None, 3, ["prompteol"]])
def test_what_is_no_source_is_refused(source):
    with pytest.raises(RecipeError, match="is no recipe"):
        Recipe.load(source)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("name: x\nheads: [dense\n", "line 3: not valid YAML"),
        ("- a\n- b\n", "holds list, not a mapping"),
        ("", "holds nothing"),
        ("prompt: {default: {text}}\n", "stands in quotes"),
        ("1: 2\n", "1: Keys should be strings"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, content, complaint):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path)
    assert "mine.yaml" in str(caught.value)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        Recipe.load(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match=r"cannot read the recipe.*embedlm\.yaml"):
        Recipe.load(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        Recipe.load(tmp_path / "bytes.yaml")


def test_yaml_cannot_build_objects(tmp_path):
    (tmp_path / "bad.yaml").write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(RecipeError, match="not valid YAML"):
        Recipe.load(tmp_path / "bad.yaml")


# -- override --------------------------------------------------------------------------------------


def test_override_replaces_fields_by_path_and_leaves_the_original():
    recipe = Recipe.load("prompteol")
    changed = recipe.override({"pooling.kind": "weighted_mean", "backbone.attention": "native"})
    assert (changed.pooling.kind, changed.backbone.attention) == ("weighted_mean", "native")
    assert (recipe.pooling.kind, recipe.backbone.attention) == ("last", "causal")
    assert changed.prompt == recipe.prompt


def test_override_makes_what_is_not_there_yet():
    recipe = Recipe.load("plain-mean").override(
        {
            "prompt.max_length.query": 32,
            "prompt.roles.title": "Title: {text}",
            "transform.per_prompt": 2,
            "pooling.layer": [-1, -2],
        }
    )
    assert recipe.prompt.max_length == {"query": 32}
    assert recipe.prompt.roles == {"title": "Title: {text}"}
    assert recipe.transform is not None
    assert recipe.transform.per_prompt == 2
    assert recipe.pooling.layer == (-1, -2)


def test_override_reaches_an_entry_of_a_list_by_kind_name_or_place():
    recipe = Recipe.load("promptreps").override({"heads.sparse.top_k": 8, "heads.1.expand": 2})
    sparse = recipe.heads[1]
    assert isinstance(sparse, Sparse)
    assert (sparse.top_k, sparse.expand, sparse.restrict) == (8, 2, "text")
    stage = {"name": "warm", "objective": [{"kind": "info_nce"}]}
    tuned = recipe.override({"tuning": {"stages": [stage]}})
    tuned = tuned.override({"tuning.stages.warm.batching.size": 64})
    assert tuned.tuning is not None
    assert tuned.tuning.stages[0].batching.size == 64


def test_override_takes_the_parts_of_another_recipe():
    pooling = Recipe.load("echo-mean").pooling
    assert Recipe.load("prompteol").override({"pooling": pooling}).pooling == pooling


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("poling.kind", "Did you mean 'pooling'?"),
        ("pooling.knid", "Did you mean 'kind'?"),
        ("name.first", "'name' has no fields below it"),
        ("heads.colbert.top_k", "there are: dense"),
        ("heads.0", "give the whole list"),
        ("", "unknown field"),
        ("pooling..kind", "unknown field"),
    ],
)
def test_override_refuses_a_path_that_leads_nowhere(path, complaint):
    with pytest.raises(RecipeError) as caught:
        Recipe.load("prompteol").override({path: "mean"})
    assert complaint in str(caught.value)


def test_override_checks_values():
    with pytest.raises(RecipeError, match=r"prompteol: pooling\.kind: .*\(given 'avg'\)"):
        Recipe.load("prompteol").override({"pooling.kind": "avg"})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"pooling": {"kind": "men"}}, r"\(given 'men'\)\. Did you mean 'mean'\?"),
        ({"backbone": {"attention": "causel"}}, r"Did you mean 'causal'\?"),
        ({"pooling": {"over": ["txt"]}}, r"Did you mean 'text'\?"),
        ({"heads": [{"sparse": {"reduce": "mx"}}]}, r"Did you mean 'max'\?"),
        ({"pooling": {"kind": 7}}, r"\(given 7\)$"),
    ],
)
def test_a_value_that_is_not_allowed_is_told_with_the_nearest_one(fields, told):
    with pytest.raises(RecipeError, match=told):
        Recipe.load(fields)


def test_a_recipe_does_not_change():
    recipe = Recipe.load("prompteol")
    with pytest.raises(ValidationError):
        recipe.name = "other"
    with pytest.raises(ValidationError):
        recipe.pooling.kind = "mean"


# -- dump ------------------------------------------------------------------------------------------


def _escaped(text):
    return text.replace("{", "{{").replace("}", "}}")


LITERAL = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(_escaped)
TEMPLATE = st.tuples(LITERAL, LITERAL).map("{text}".join)
CHANGES = {
    "prompt.default": TEMPLATE | st.lists(TEMPLATE, min_size=1, max_size=3),
    "prompt.query": TEMPLATE,
    "prompt.roles": st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), TEMPLATE),
    "prompt.instruction": LITERAL | st.none(),
    "prompt.separator": LITERAL,
    "prompt.clean": st.sampled_from(["none", "strip", "promptbert", "prompteol", True, False]),
    "prompt.max_length": st.integers(1, 10**6) | st.none(),
    "prompt.truncate": st.sampled_from(["text", "slot", "pieces", "end"]),
    "pooling.kind": st.sampled_from(POOLINGS),
    "pooling.over": st.just("all") | st.lists(st.sampled_from(SEGMENTS), min_size=1, unique=True),
    "pooling.layer": st.integers(-40, 40) | st.lists(st.integers(-40, 40), min_size=1, max_size=3),
    "pooling.sif_a": st.floats(1e-9, 1.0),
    "heads": st.lists(
        st.sampled_from(["dense", "multi_vector", {"sparse": {"top_k": 5, "reduce": "sum"}}]),
        min_size=1,
        max_size=3,
        unique_by=str,
    ),
    "normalize": st.booleans(),
    "notes": st.text(st.characters(exclude_categories=["Cs"]), max_size=200) | st.none(),
    "checkpoints": st.lists(st.text(min_size=1, max_size=9), max_size=2).map(list),
}


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(recipes()), changes=st.fixed_dictionaries({}, optional=CHANGES))
@example(name="static-sif", changes={"pooling.kind": "last", "pooling.sif_a": 1.0})
def test_every_override_survives_dump_and_load(name, changes):
    if {"pooling.kind", "heads"} & changes.keys():  # some refuse the sink of the recipe's own
        changes = {"pooling.exclude_sink": False, **changes}
    if "prompt.roles" in changes:  # some say more of roles of their own
        changes = {"prompt.instruction": None, "backbone.adapter_roles": {}, **changes}
    try:
        recipe = Recipe.load(name).override(changes)
    except RecipeError as error:
        assume("has no effect" not in str(error))
        raise
    recipe = recipe.override(without_effect(recipe))
    assert Recipe.load(yaml.safe_load(recipe.dump())) == recipe
    assert recipe.override({}) == recipe


def test_a_dump_leaves_defaults_out():
    dumped = yaml.safe_load(Recipe.load("plain-last").dump())
    assert set(dumped) <= {"name", "summary", "section", "prompt", "pooling", "heads", "notes"}
    assert dumped["prompt"] == {"default": "{text}"}
    assert dumped["heads"] == ["dense"]
    sparse = yaml.safe_load(Recipe.load("promptreps").dump())["heads"][1]["sparse"]
    assert sparse["top_k"] == 128
    assert "kind" not in sparse

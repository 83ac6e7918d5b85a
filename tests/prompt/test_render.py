"""From a template and a text to token ids and segments, by every rule of a recipe's prompt."""

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embedlm
from embedlm.errors import InputError, RecipeError
from embedlm.prompt import rows
from embedlm.prompt.render import Renderer, Request
from embedlm.schema.recipe import SEGMENTS, Recipe
from tests.models import build_tokenizer

TOKENIZER = build_tokenizer()
ENCODER = build_tokenizer("encoder")
LONG = " ".join(["plants make food from light"] * 40)


def renderer(tokenizer=TOKENIZER, limit=None, positions=None, **prompt):
    given_prompt = Recipe.load({"prompt": {"default": "Query:{text};{text}{eos}", **prompt}}).prompt
    return Renderer(tokenizer, given_prompt, limit=limit, positions=positions)


def render(text, tokenizer=TOKENIZER, request=None, **prompt):
    """Return the tokens and the segments of one text."""
    (batch,) = renderer(tokenizer, **prompt).render([text], request or Request())
    assert len(batch.ids[0]) == len(batch.segments[0])
    tokens = tokenizer.convert_ids_to_tokens(batch.ids[0])
    return tokens, [SEGMENTS[index] for index in batch.segments[0]]


def part(tokens_segments, *names):
    return [token for token, name in zip(*tokens_segments, strict=True) if name in names]


# -- segments --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenize", ["joined", "pieces"])
def test_every_token_has_its_segment(tokenize):
    template = "Instruct: {?instruction}{instruction}, {/instruction}Query:{text};{text}{eos}"
    own = {"default": template, "instruction": "retrieve", "tokenize": tokenize}
    found = render("food", **own)
    assert "".join(part(found, "text")) == "food"
    assert "".join(part(found, "repeat")) == "food"
    assert "retrieve" in "".join(part(found, "instruction"))
    assert "".join(part(found, "literal")).startswith("Instruct")
    assert part(found, "eos") == ["</s>"]
    assert part(found, "special") == (["<s>"] if tokenize == "joined" else [])


def test_threads_that_render_pieces_do_not_take_them_from_each_other(monkeypatch):
    monkeypatch.setattr(rows, "_CACHED_PIECES", 1)
    prompt = {"default": "a {text} b {text} c", "tokenize": "pieces"}
    renderer = Renderer(build_tokenizer(), Recipe.load({"prompt": prompt}).prompt)
    wanted = renderer.render(["light"], Request())[0].ids
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda _: renderer.render(["light"], Request())[0].ids, range(400))
        assert all(ids == wanted for ids in found)


def test_bos_is_special_in_pieces():
    found = render("food", default="{bos}{text}", tokenize="pieces")
    assert found[1][0] == "special"
    assert found[0][0] == "<s>"


@pytest.mark.parametrize("tokenize", ["joined", "pieces"])
def test_a_closing_eos_is_written_once(tokenize):
    for tokenizer in (TOKENIZER, ENCODER):
        tokens, segments = render("food", tokenizer, default="{text}{eos}", tokenize=tokenize)
        assert tokens.count("</s>") == 1
        assert (tokens[-1], segments[-1]) == ("</s>", "eos")


@pytest.mark.parametrize("tokenize", ["joined", "pieces"])
def test_a_tokenizer_without_eos_leaves_it_out(tokenize):
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    tokens, segments = render("food", tokenizer, default="{text}{eos}", tokenize=tokenize)
    assert "eos" not in segments
    assert "".join(tokens).endswith("food")


@pytest.mark.parametrize("tokenize", ["joined", "pieces"])
def test_an_empty_text_keeps_marks_and_ids_together(tokenize):
    own = {"special_tokens": "none", "tokenize": tokenize}
    assert render("", default="{text}{eos}", **own) == (["</s>"], ["eos"])
    assert render("", default="{text}", **own) == (["<s>"], ["special"])


# -- chats -----------------------------------------------------------------------------------------

CHAT = "<s>{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
TURNS = [{"role": "user", "content": "food {text}"}]


@pytest.mark.parametrize("place", ["default", "query", "document"])
@pytest.mark.parametrize("role", [None, "query", "document"])
def test_a_chats_own_bos_is_the_only_one(place, role):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT
    prompt = Recipe.load({"prompt": {place: TURNS}}).prompt
    (batch,) = Renderer(tokenizer, prompt).render(["x"], Request(role=role))
    assert batch.ids[0].count(tokenizer.bos_token_id) == 1


# -- truncation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenize", ["joined", "pieces"])
@pytest.mark.parametrize("limit", [12, 13, 40])
def test_text_gives_way_until_all_fits(tokenize, limit):
    short = render("x", tokenize=tokenize)
    found = render(LONG, request=Request(max_length=limit), tokenize=tokenize)
    assert limit - 2 < len(found[0]) <= limit
    assert part(found, "literal", "eos") == part(short, "literal", "eos")
    first, second = part(found, "text"), part(found, "repeat")
    assert len(first) == len(second) > 0


@pytest.mark.parametrize(("truncate", "limit"), [("text", 22), ("text", 30), ("slot", 6)])
def test_a_token_of_text_and_template_stays(truncate, limit):
    text = "plants make food from sunlight." * 40
    own = renderer(default="This sentence : '{text}' means in one word:", truncate=truncate)
    assert ".'" in TOKENIZER.tokenize(f"'{text}' means"), "one token of the text and the template"
    request = Request(max_length=limit)
    (batch,) = own.render([text], request)
    shown = TOKENIZER.decode(batch.ids[0], skip_special_tokens=True)
    assert batch.truncated == [True]
    assert shown.startswith("This sentence : 'plants")
    assert shown.endswith(".' means in one word:")
    (bare,) = own.render([text], request, segments=False)
    assert bare.ids == batch.ids


EDGES = st.sampled_from(["", "'", '"', "\n", " ", ".", "...", "s", "' means", "\n\n", "a."])


@settings(max_examples=60, deadline=None)
@given(
    edges=st.tuples(EDGES, EDGES, EDGES),
    text=st.text(alphabet="ab .'\"\n", min_size=30, max_size=60),
    spare=st.integers(2, 12),
    truncate=st.sampled_from(["text", "slot"]),
    boundary=st.sampled_from(["offsets", "count_prefix", "count_text", "count_prompt"]),
)
def test_what_is_shortened_keeps_the_template(edges, text, spare, truncate, boundary):
    before, between, after = edges
    template = f"Query:{before}{{text}}{between}again{between}{{text}}{after}end"
    prompt = Recipe.load({"prompt": {"default": template, "truncate": truncate}}).prompt
    own = Renderer(TOKENIZER, prompt, boundary=boundary)
    room = len(TOKENIZER(template.replace("{text}", ""))["input_ids"]) + spare + 8
    (batch,) = own.render([text], Request(max_length=spare if truncate == "slot" else room))
    shown = TOKENIZER.decode(batch.ids[0], skip_special_tokens=True)
    assert re.fullmatch(
        rf"(?s)Query:{re.escape(before)}.*{re.escape(f'{between}again{between}')}.*"
        rf"{re.escape(after)}end",
        shown,
    ), shown


@pytest.mark.parametrize("tokenize", ["joined", "pieces"])
def test_a_slots_limit_counts_each_copy_alone(tokenize):
    own = {"truncate": "slot", "max_length": 7, "tokenize": tokenize}
    found = render(LONG, **own)
    assert len(part(found, "text")) == len(part(found, "repeat")) == 7
    short = render("food", **own)
    assert part(short, "text", "repeat") == part(
        render("food", tokenize=tokenize), "text", "repeat"
    )


def test_a_pieces_limit_counts_every_piece():
    own = {"tokenize": "pieces", "truncate": "pieces", "max_length": 2}
    found = render(LONG, **own)
    assert len(part(found, "text")) == len(part(found, "repeat")) == 2
    assert len(part(found, "literal")) < len(part(render(LONG, tokenize="pieces"), "literal"))


@pytest.mark.parametrize("tokenize", ["joined", "pieces"])
def test_the_rendered_end_is_cut(tokenize):
    whole = render(LONG, tokenize=tokenize)
    found = render(LONG, truncate="end", max_length=9, tokenize=tokenize)
    assert found == (whole[0][:9], whole[1][:9])


@pytest.mark.parametrize("tokenize", ["joined", "pieces"])
def test_a_prompt_that_leaves_no_room_is_refused(tokenize):
    with pytest.raises(InputError, match=r"the prompt alone takes \d+ tokens.*max_length 3"):
        render(LONG, request=Request(max_length=3), tokenize=tokenize)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit):
    with pytest.raises(InputError, match=f"max_length is {limit}"):
        render("food", request=Request(max_length=limit))


def test_limits_by_role():
    own = renderer(limit=100, default="{text}", max_length={"query": 8, "document": 16})
    lengths = {
        role: len(own.render([LONG], Request(role=role))[0].ids[0])
        for role in ("query", "document", None)
    }
    assert lengths == {"query": 8, "document": 16, None: 16}
    assert len(own.render([LONG], Request(role="query", max_length=50))[0].ids[0]) == 50


@pytest.mark.parametrize("tokenize", ["joined", "pieces"])
@pytest.mark.parametrize("truncate", ["text", "slot", "pieces", "end"])
@pytest.mark.parametrize("limit", [None, 20, 30, 1000])
def test_no_rule_exceeds_the_models_positions(tokenize, truncate, limit):
    own = renderer(limit=32, positions=32, tokenize=tokenize, truncate=truncate)
    for segments in (True, False):
        request = Request(max_length=limit)
        (batch,) = own.render([LONG, "x", ""], request, segments=segments)
        assert max(map(len, batch.ids)) <= 32
        assert batch.truncated[0]
        assert not batch.truncated[2]


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(max_size=60),
    limit=st.integers(14, 40),
    tokenize=st.sampled_from(["joined", "pieces"]),
    truncate=st.sampled_from(["text", "slot", "end"]),
)
def test_segments_and_ids_go_together(text, limit, tokenize, truncate):
    own = renderer(limit=limit, positions=40, tokenize=tokenize, truncate=truncate)
    (batch,) = own.render([text], Request())
    (bare,) = own.render([text], Request(), segments=False)
    assert len(batch.ids[0]) == len(batch.segments[0]) <= 40
    assert bare.ids == batch.ids
    if truncate != "slot":
        assert len(batch.ids[0]) <= limit


@pytest.mark.parametrize("name", ["gpt2", "opt", "bert", "xlm-r", "gpt-neo"])
@pytest.mark.parametrize("truncate", ["text", "slot", "pieces", "end"])
def test_a_learned_table_of_positions_is_never_left(model_folder, name, truncate):
    changes = {"prompt.truncate": truncate, "backbone.attention": "native"}
    recipe = Recipe.load("echo-mean").override(changes)
    model = embedlm.load(model_folder(name), recipe=recipe, max_length=5000)
    vectors = model.encode([LONG * 20, "x"], max_length=4000)
    assert np.isfinite(vectors).all()
    assert len(model.render([LONG * 20], max_length=4000).ids[0]) <= 256


def test_computed_positions_have_no_end(tiny_llama):
    model = embedlm.load(tiny_llama, recipe="plain-mean")
    assert model.backbone.positions is None
    assert len(model.render([LONG * 9], max_length=500).ids[0]) == 500


def test_the_start_is_cut_and_special_tokens_stay(sided_renderer):
    whole = sided_renderer(None)
    cut = sided_renderer(6)
    assert cut.ids[0] == [whole.ids[0][0], *whole.ids[0][-5:]]
    assert cut.truncated == [True]
    assert len(cut.segments[0]) == 6


@pytest.fixture
def sided_renderer(model_folder):
    """Return a function from a limit to a batch that is cut on the left."""
    prompt = {"default": "query: {text}", "truncation_side": "left"}
    model = embedlm.load(model_folder("bert"), {"prompt": prompt}, device="cpu")
    return lambda limit: model.render(["one two three four five six"], max_length=limit)


@pytest.mark.parametrize("other", [{"truncate": "end"}, {"tokenize": "pieces"}, {"text_length": 9}])
def test_a_left_side_stands_with_no_other_way_to_cut(other):
    with pytest.raises(
        RecipeError, match=f"truncation_side is left, and prompt.{next(iter(other))}"
    ):
        Recipe.load({"prompt": {"truncation_side": "left", **other}})

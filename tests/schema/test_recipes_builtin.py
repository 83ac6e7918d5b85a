"""The built-in recipes: published wording to the character, and what each of them asks for."""

import re
from importlib.resources import files

import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from embedlm.prompt.render import Renderer, Request
from embedlm.schema.recipe import SEGMENTS, Recipe, recipes
from tests.json_schema import violations
from tests.parity import facts, needs_parity

KNOWLEDGE = (
    "The essence of a sentence is often captured by its main subjects and actions, while "
    "descriptive terms provide additional but less central details. With this in mind , this "
    'sentence : "{text}" means in one word:"'
)
ONE_TEMPLATE = {
    "plain-last": "{text}",
    "plain-mean": "{text}",
    "weighted-mean": "{text}",
    "inner-mean": "{text}",
    "promptbert": 'This sentence : "{text}" means {mask} .',
    "prompteol": 'This sentence : "{text}" means in one word:"',
    "prompteol-icl": '{demonstrations}This sentence : "{text}" means in one word:"',
    "promptsth": 'This sentence : "{text}" means something',
    "promptsum": 'This sentence : "{text}" can be summarized as',
    "pretended-cot": 'After thinking step by step , this sentence : "{text}" means in one word:"',
    "knowledge-enhancement": KNOWLEDGE,
    "geneol": "{bos}" + KNOWLEDGE,
    "echo-zero-shot": "Rewrite the sentence: {text}, rewritten sentence: {text}",
    "splade": "{text}",
    "static-mean": "{text}",
    "static-tfidf": "{text}",
    "static-sif": "{text}",
}
META_ENDINGS = [
    "should be classified under one general category",
    "discriminates between opinion and fact",
    "reflects the sentiment",
    "conveys the emotion",
    "means",
    "means",
    "encapsulates the key fact",
    "highlights the primary entity or relation",
]
ECHO = {
    "query": "{bos}Instruct:{?instruction}{instruction},{/instruction}\n"
    "Query:{text}\nQuery again:{text}{eos}",
    "document": "{bos}Document:{text}\nDocument again:{text}{eos}",
}
PASSAGE = (
    'Passage: "{text}". Use one word to represent the passage in a retrieval task. '
    "Make sure your word is in lowercase."
)
CLEANED = {
    "prompteol",
    "prompteol-icl",
    "promptsth",
    "promptsum",
    "pretended-cot",
    "knowledge-enhancement",
    "metaeol",
}


def template(name, role="default"):
    return getattr(Recipe.load(name).prompt, role)


# -- every recipe ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_says_what_it_is(name):
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9.]+)*", name)
    assert 10 < len(recipe.summary) <= 100
    assert "\n" not in recipe.summary
    assert recipe.section
    assert recipe.notes
    assert recipe.citation or not recipe.paper
    if recipe.paper and recipe.paper.startswith("arXiv"):
        assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", recipe.paper)


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_survives_dump_and_load(name):
    recipe = Recipe.load(name)
    assert Recipe.load(yaml.safe_load(recipe.dump())) == recipe
    assert Recipe.load(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_fits_the_json_schema(name):
    schema = Recipe.json_schema()
    file = files("embedlm") / "recipes" / f"{name}.yaml"
    assert violations(yaml.safe_load(file.read_text(encoding="utf-8")), schema) == []
    assert violations(yaml.safe_load(Recipe.load(name).dump()), schema) == []


def test_the_json_schema_refuses_what_the_loader_refuses():
    schema = Recipe.json_schema()
    plain = {"prompt": {"default": "{text}"}}
    assert violations(plain, schema) == []
    for change in (
        {"poolin": {}},
        {"pooling": {"kind": "avg"}},
        {"pooling": {"over": []}},
        {"pooling": {"layer": "last"}},
        {"pooling": {"layer": 1.5}},
        {"pooling": {"sif_a": 0}},
        {"prompt": {"default": 3}},
        {"prompt": {"default": [{"role": "me", "content": "{text}"}]}},
        {"heads": ["dence"]},
        {"heads": [{"sparse": {"topk": 3}}]},
        {"heads": []},
        {"tuning": {"stages": []}},
    ):
        assert violations({**plain, **change}, schema) != [], change


# -- wording ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "wording"), ONE_TEMPLATE.items())
def test_wording(name, wording):
    prompt = Recipe.load(name).prompt
    assert prompt.default == wording
    assert prompt.query is prompt.document is None
    assert not prompt.roles


def test_wording_of_metaeol():
    prompts = template("metaeol")
    assert len(prompts) == len(META_ENDINGS)
    for prompt, ending in zip(prompts, META_ENDINGS, strict=True):
        assert prompt.startswith("In this task, you're ")
        assert re.search(r"[.] (For|To enhance the performance of) th", prompt)
        assert prompt.endswith(f'task, this sentence : "{{text}}" {ending} in one word:"')
        assert "  " not in prompt
        assert "\n" not in prompt
    assert "'Education', 'Technology', 'Health', 'Business', 'Environment'" in prompts[0]


def test_wording_of_a_demonstration():
    prompt = Recipe.load("prompteol-icl").prompt
    assert prompt.demonstration == 'This sentence : "{query}" means in one word:"{response}".'
    assert prompt.separator == ""
    assert prompt.demonstrations == (
        {"query": "A jockey riding a horse.", "response": "Equestrian"},
    )


@pytest.mark.parametrize("name", ["echo-mean", "echo-last"])
def test_wording_of_echo(name):
    prompt = Recipe.load(name).prompt
    assert prompt.default == ECHO["query"]
    assert prompt.query is None  # the default's
    assert prompt.document == ECHO["document"]


def test_wording_of_promptreps():
    system, user, assistant = template("promptreps", "document")
    assert system.content == "You are an AI assistant that can understand human language."
    assert user.content == PASSAGE
    assert assistant.content == 'The word is "'
    query = template("promptreps", "query")[1].content
    assert query == PASSAGE.replace("Passage", "Query").replace("passage", "query")


def test_wording_of_promptreps_raw():
    wording = template("promptreps-raw", "document")
    assert wording.count("\\n\\n") == 3  # two characters each
    assert "\n" not in wording
    assert wording.startswith(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\\n\\nYou"
    )
    assert wording.endswith('<|start_header_id|>assistant<|end_header_id|>\\n\\nThe word is: "')
    assert f"user<|end_header_id|>\\n\\n{PASSAGE}<|eot_id|>" in wording
    query = template("promptreps-raw", "query")
    assert query == wording.replace("Passage", "Query").replace("passage", "query")


# -- the rest of each system -----------------------------------------------------------------------


@pytest.mark.parametrize("name", recipes())
def test_clean_up_belongs_to_one_family(name):
    assert (Recipe.load(name).prompt.clean == "prompteol") == (name in CLEANED)


@pytest.mark.parametrize("name", ["pretended-cot", "knowledge-enhancement"])
def test_two_prompts_read_the_last_layer_but_one(name):
    assert Recipe.load(name).pooling.layer == -2


@pytest.mark.parametrize("name", sorted(CLEANED - {"pretended-cot", "knowledge-enhancement"}))
def test_the_others_read_the_last_state_of_the_last_layer(name):
    recipe = Recipe.load(name)
    assert (recipe.pooling.kind, recipe.pooling.layer) == ("last", -1)
    assert recipe.backbone.attention == "causal"
    assert not recipe.normalize


@pytest.mark.parametrize("name", ["promptreps", "promptreps-raw"])
def test_promptreps_has_two_heads(name):
    recipe = Recipe.load(name)
    dense, sparse = recipe.heads
    assert dense.kind == "dense"
    assert (sparse.restrict, sparse.top_k, sparse.reduce) == ("text", 128, "pool")
    assert sparse.fallback_top_k == 10
    assert recipe.normalize
    assert recipe.prompt.clean == "strip"


@pytest.mark.parametrize("kind", ["mean", "last"])
def test_echo_pools_the_second_copy_and_eos(kind):
    recipe = Recipe.load(f"echo-{kind}")
    assert recipe.pooling.kind == kind
    assert recipe.pooling.over == ("repeat", "eos")
    assert (recipe.prompt.tokenize, recipe.prompt.truncate) == ("pieces", "pieces")
    assert recipe.prompt.max_length == 300


def test_static_recipes_use_no_layers():
    weights = {"static-mean": "none", "static-tfidf": "idf", "static-sif": "sif"}
    for name, kind in weights.items():
        recipe = Recipe.load(name)
        assert recipe.backbone.kind == "static"
        assert recipe.pooling.weights == kind
        assert recipe.pooling.remove_components == (name == "static-sif")


def test_geneol_and_splade():
    geneol = Recipe.load("geneol")
    assert geneol.transform is not None
    assert geneol.transform.kind == "geneol"
    splade = Recipe.load("splade")
    assert [head.kind for head in splade.heads] == ["sparse"]
    assert splade.heads[0].reduce == "max"
    assert splade.similarity == "dot"


# -- what a tokenizer gets -------------------------------------------------------------------------

WORDS = "this that sentence means cat . : \" ' ! one word in rewrite the rewritten , again query"


def tokenizer(**special):
    """Return a word-level tokenizer that adds no special tokens by itself."""
    vocab = {word: index for index, word in enumerate(["[UNK]", *special.values(), *WORDS.split()])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", **special)


def rendered(name, tok, text, **request):
    (batch,) = Renderer(tok, Recipe.load(name).prompt).render([text], Request(**request))
    return tok.convert_ids_to_tokens(batch.ids[0]), [SEGMENTS[s] for s in batch.segments[0]], batch


def test_promptbert_marks_the_mask_between_cls_and_sep():
    tok = tokenizer(cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
    ends = [("[CLS]", tok.cls_token_id), ("[SEP]", tok.sep_token_id)]
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    tokens, segments, batch = rendered("promptbert", tok, "cat")
    assert batch.text == ['This sentence : "cat." means [MASK] .']
    assert tokens[0] == "[CLS]"
    assert tokens[-1] == "[SEP]"
    assert [t for t, s in zip(tokens, segments, strict=True) if s == "mask"] == ["[MASK]"]


def test_the_second_copy_of_echo_is_marked_repeat():
    tokens, segments, _ = rendered("echo-zero-shot", tokenizer(), "that cat")
    assert [t for t, s in zip(tokens, segments, strict=True) if s == "repeat"] == ["that", "cat"]
    assert tokens[-2:] == ["that", "cat"]


@pytest.mark.parametrize("name", ["echo-mean", "echo-last"])
def test_tuned_echo_ends_pooled_segments_with_eos(name):
    tok = tokenizer(bos_token="<s>", eos_token="</s>")
    tokens, segments, _ = rendered(name, tok, "cat")
    assert (tokens[0], segments[0]) == ("<s>", "special")
    assert (tokens[-2:], segments[-2:]) == (["cat", "</s>"], ["repeat", "eos"])
    without = rendered(name, tokenizer(), "cat")[0]
    assert without == [token for token in tokens if token not in ("<s>", "</s>")]


def test_geneol_writes_bos_once():
    tok = tokenizer(bos_token="<s>")
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tok.bos_token_id)]
    )
    tokens, _, _ = rendered("geneol", tok, "cat")
    assert tokens[0] == "<s>"
    assert "<s>" not in tokens[1:]


def test_a_demonstration_stands_before_the_sentence():
    _, _, batch = rendered("prompteol-icl", tokenizer(), 'the "cat"?')
    assert batch.text == [
        'This sentence : "A jockey riding a horse." means in one word:"Equestrian".'
        'This sentence : "the \'cat\'." means in one word:"'
    ]
    other = ({"query": "cat", "response": "pet"},)
    _, _, batch = rendered("prompteol-icl", tokenizer(), "cat.", demonstrations=other)
    assert batch.text[0].startswith('This sentence : "cat" means in one word:"pet".This')
    _, _, batch = rendered("prompteol-icl", tokenizer(), "cat.", demonstrations=())
    assert batch.text == ['This sentence : "cat." means in one word:"']


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("cat", "cat."),
        ("cat.", "cat."),
        ("cat?", "cat."),
        ('the "cat"', "the 'cat'"),
        ("cat!", "cat!."),
        ("cat ", "cat ."),
        ("'cat'", "'cat'"),
    ],
)
def test_clean_up_of_the_one_word_family(text, cleaned):
    _, _, batch = rendered("prompteol", tokenizer(), text)
    assert batch.text == [f'This sentence : "{cleaned}" means in one word:"']


CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"


@pytest.mark.parametrize("role", [None, "document", "query"])
def test_promptreps_leaves_the_assistants_turn_open(role):
    tok = tokenizer()
    tok.chat_template = CHAT
    _, _, batch = rendered("promptreps", tok, " the {cat} ", role=role)
    asked = ("Query", "query") if role == "query" else ("Passage", "passage")
    assert batch.text[0].startswith("<system>You are an AI assistant")
    wording = f'<user>{asked[0]}: "the {{cat}}". Use one word to represent the {asked[1]} in'
    assert wording in batch.text[0]
    assert batch.text[0].endswith('lowercase.</><assistant>The word is "')


def test_promptreps_without_a_chat_template_joins_lines():
    _, _, batch = rendered("promptreps", tokenizer(), "cat")
    assert batch.text[0].count("\n") == 2
    assert batch.text[0].endswith('lowercase.\nThe word is "')


# -- against the references' own words -------------------------------------------------------------


@needs_parity
@pytest.mark.parametrize("case", ["09_prompteol_opt", "09_prompteol_lm2"])
def test_one_word_prompts_equal_the_references(case):
    given = facts(case)["templates"]
    names = {
        "PromptEOL": "prompteol",
        "PromptSTH": "promptsth",
        "PromptSUM": "promptsum",
        "Pretended_CoT": "pretended-cot",
        "Knowledge_Enhancement": "knowledge-enhancement",
    }
    assert set(names) == set(given)
    for key, name in names.items():
        assert template(name) == given[key].replace("*sent_0*", "{text}")


@needs_parity
def test_metaeol_equals_the_reference():
    given = facts("10_metaeol")["prompts"]
    assert list(template("metaeol")) == [one.replace("*sent 0*", "{text}") for one in given]


@needs_parity
def test_echo_equals_the_reference():
    ours = {
        "<s>": "{bos}",
        "{!%%prompt%%,}": "{?instruction}{instruction},{/instruction}",
        "{!%%text%%}": "{text}",
        "{%%text%%}": "{text}",
        "{</s>}": "{eos}",
    }
    for role, wording in facts("11_echo")["templates"].items():
        for theirs, own in ours.items():
            wording = wording.replace(theirs, own)
        assert ECHO[role] == wording


@needs_parity
@pytest.mark.parametrize(("role", "word"), [("query", "query"), ("document", "passage")])
def test_promptreps_raw_equals_the_reference(role, word):
    given = facts("12_promptreps")["prompts"]
    wording = given[f"{word}_prefix"] + "{text}" + given[f"{word}_suffix"]
    assert template("promptreps-raw", role) == wording

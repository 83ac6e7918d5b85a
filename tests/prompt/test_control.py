"""A control token that a text spells out is text, unless the recipe says otherwise."""

import numpy as np
import pytest
import transformers as tf
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

import embedlm
from embedlm.errors import InputError
from embedlm.prompt.render import Renderer, Request
from embedlm.schema.recipe import SEGMENTS, Recipe
from tests.models import CORPUS, build_tokenizer

NAMES = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
SPECIAL = list(NAMES.values())


def unigram():
    """SentencePiece's kind: control tokens are pieces of the vocabulary like others."""
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        ),
    )
    return core


def word_piece():
    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=SPECIAL, show_progress=False, initial_alphabet=list("</>")
    )
    core.train_from_iterator(CORPUS, trainer)
    return core


def word_level():
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    return core


def wrapped(core):
    ids = [(word, core.token_to_id(word)) for word in ("<s>", "</s>")]
    core.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    names = {f"{name}_token": word for name, word in NAMES.items()}
    return tf.PreTrainedTokenizerFast(tokenizer_object=core, **names)


TOKENIZERS = {
    "bytes": build_tokenizer(),
    "unigram": wrapped(unigram()),
    "word-piece": wrapped(word_piece()),
    "word-level": wrapped(word_level()),
}
KINDS = pytest.mark.parametrize("kind", TOKENIZERS)
WAYS = pytest.mark.parametrize("tokenize", ["joined", "pieces"])
TEMPLATE = "{bos}<mask>Query: {?instruction}{instruction}: {/instruction}{text}</s>{eos}"


def rendered(kind, texts, instruction="", **prompt):
    prompt = Recipe.load({"prompt": {"default": TEMPLATE, **prompt}}).prompt
    own = Renderer(TOKENIZERS[kind], prompt)
    (batch,) = own.render(texts, Request(), [instruction] * len(texts))
    return batch


def split(kind, batch, row=0):
    """Return the ids that are read as control tokens, of the template and of what fills it."""
    control = {i for i in TOKENIZERS[kind].all_special_ids if i != TOKENIZERS[kind].unk_token_id}
    slots = [SEGMENTS.index(name) for name in ("text", "instruction", "demonstrations")]
    pairs = list(zip(batch.ids[row], batch.segments[row], strict=True))
    return tuple(
        [i for i, segment in pairs if i in control and (segment in slots) is inside]
        for inside in (False, True)
    )


@KINDS
@WAYS
@pytest.mark.parametrize("token", SPECIAL)
def test_a_spelled_control_token_is_text(kind, tokenize, token):
    plain = rendered(kind, ["use the food"], tokenize=tokenize)
    assert split(kind, plain)[0], "the template has control tokens of its own"
    for text in (f"use {token} food", token, f"{token}{token} food", f"food{token}"):
        batch = rendered(kind, [text], tokenize=tokenize)
        assert split(kind, batch) == (split(kind, plain)[0], [])
        assert batch.text == [plain.text[0].replace("use the food", text)]
    if kind == "bytes":
        read = [i for i, s in zip(batch.ids[0], batch.segments[0], strict=True) if s == 4]
        assert TOKENIZERS[kind].decode(read).strip() == f"food{token}"


@KINDS
@WAYS
def test_what_spells_none_is_tokenised_as_before(kind, tokenize):
    texts = ["use the food", "a < b", "food </s> light", "1 < 2 > 0"]
    batch = rendered(kind, texts, tokenize=tokenize)
    before = rendered(kind, texts, tokenize=tokenize, special_tokens_in_text="tokens")
    for row in (0, 1, 3):
        assert batch.ids[row] == before.ids[row]
        np.testing.assert_array_equal(batch.segments[row], before.segments[row])
    assert batch.ids[2] != before.ids[2]


@KINDS
@WAYS
def test_instructions_and_demonstrations_are_text_too(kind, tokenize):
    plain = rendered(kind, ["food"], "find", tokenize=tokenize)
    batch = rendered(kind, ["food"], "find </s>", tokenize=tokenize)
    assert split(kind, batch) == (split(kind, plain)[0], [])
    prompt = Recipe.load(
        {
            "prompt": {
                "default": "{demonstrations}{text}",
                "demonstration": "<mask>{query}</s>",
                "tokenize": tokenize,
            }
        }
    ).prompt
    own = Renderer(TOKENIZERS[kind], prompt)
    counts = []
    for shot in ("food", "the </s> <mask> food"):
        (batch,) = own.render(["light"], Request(demonstrations=({"query": shot},)))
        tokens = TOKENIZERS[kind].convert_ids_to_tokens(batch.ids[0])
        counts.append((tokens.count("<mask>"), tokens.count("</s>")))
        assert batch.text == [f"<mask>{shot}</s>light"]
    assert counts[0] == counts[1]


def test_other_characters_that_a_normaliser_turns_into_a_control_token():
    batch = rendered("unigram", ["the \uff1c/s\uff1e food"])
    assert split("unigram", batch)[1] == []


def test_tokens_are_the_references_way():
    tokenizer = TOKENIZERS["unigram"]
    batch = rendered("unigram", ["a </s> b"], default="{text}", special_tokens_in_text="tokens")
    assert batch.ids == [tokenizer("a </s> b")["input_ids"]]
    assert batch.ids[0].count(tokenizer.eos_token_id) == 2


@pytest.mark.parametrize("part", ["text", "instruction"])
def test_refused_control_tokens_are_named(part):
    hostile = {"text": ("the <mask> food", ""), "instruction": ("food", "<mask>")}[part]
    with pytest.raises(InputError, match=r"control token '<mask>'.*special_tokens_in_text"):
        rendered("bytes", [hostile[0]], hostile[1], special_tokens_in_text="refuse")
    assert len(rendered("bytes", ["food"], special_tokens_in_text="refuse").ids) == 1


def test_one_sign_is_never_a_control_token():
    tokenizer = build_tokenizer()
    tokenizer.pad_token = "+"
    prompt = Recipe.load({"prompt": {"default": "{text}"}}).prompt
    (batch,) = Renderer(tokenizer, prompt).render(["1 + 1"], Request())
    assert tokenizer.decode(batch.ids[0], skip_special_tokens=False) == "<s>1 + 1"


@KINDS
@given(
    parts=st.lists(st.sampled_from([*SPECIAL, "food", " ", "<", "/s>", "\uff1c", "é"]), max_size=8)
)
def test_no_text_reaches_a_control_token(kind, parts):
    batch = rendered(kind, ["".join(parts)])
    assert split(kind, batch) == (split(kind, rendered(kind, ["food"]))[0], [])


@pytest.mark.parametrize("limit", [9, 14])
def test_a_long_text_is_shortened_alike(limit):
    text = "food </s> light " * 30
    prompt = Recipe.load({"prompt": {"default": "<mask>'{text}'{eos}"}}).prompt
    own = Renderer(TOKENIZERS["bytes"], prompt)
    (batch,) = own.render([text], Request(max_length=limit))
    (bare,) = own.render([text], Request(max_length=limit), segments=False)
    assert bare.ids == batch.ids
    assert batch.truncated == [True]
    tokens = TOKENIZERS["bytes"].convert_ids_to_tokens(batch.ids[0])
    assert (len(tokens), tokens[1], tokens[-1]) == (limit, "<mask>", "</s>")
    assert tokens.count("</s>") == 1


def test_vectors(tiny_llama):
    model = embedlm.load(tiny_llama, "e5-mistral")
    texts = ["the </s> tag", "plants make food"]
    together = model.encode(texts)
    np.testing.assert_allclose(together[1], model.encode(texts[1]), atol=1e-5)
    ended = embedlm.load(
        tiny_llama, model.recipe.override({"prompt.special_tokens_in_text": "tokens"})
    )
    assert np.abs(together[0] - ended.encode(texts[0])).max() > 1e-3
    led = model.encode("the </s> tag", prompt="</s>")
    assert np.isfinite(led).all()

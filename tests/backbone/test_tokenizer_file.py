"""A folder's tokenizer.json is honoured where transformers makes another tokenizer of it."""

import json
from itertools import product

import pytest
import transformers as tf
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as kinds
from transformers import AutoTokenizer

import embedlm
from embedlm.backbone.tokenizer import load_tokenizer
from tests import models

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
NAMES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
}
TEXTS = [
    "plants make food from sunlight.",
    "A committee met on Tuesday; members asked WHY?",
    "Two  spaces, 12 digits: 0123456789 (and brackets)",
    "für größere Äpfel, un café très agréable",
    "",
]


def folder_of(tmp_path, arch, core, **declared):
    """Save a tiny model with that tokenizer.json and that tokenizer_config.json."""
    folder = models.build(arch, tmp_path / arch, head=False)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**NAMES, **declared}))
    return str(folder)


def spaced(kind, normalizer=None):
    """A tokenizer that writes spaces as a mark, like XLM-R's (unigram) or Llama's (bpe)."""
    options = {"special_tokens": SPECIAL, "show_progress": False}
    if kind == "unigram":
        core = Tokenizer(kinds.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>", **options)
    else:
        core = Tokenizer(kinds.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(vocab_size=300, **options)
    core.normalizer = normalizer or normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.train_from_iterator(models.CORPUS, trainer)
    ids = [("<s>", 0), ("</s>", 2)]
    core.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ids)
    return core


def closed(folder, single="$A </s>", **declared):
    """Let the tokenizer.json of a folder put that around a text."""
    file, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
    core = Tokenizer.from_file(str(file))
    ids = [("<s>", 1), ("</s>", 2)]
    core.post_processor = processors.TemplateProcessing(single, special_tokens=ids)
    core.save(str(file))
    config.write_text(json.dumps(json.loads(config.read_text()) | declared))
    return core


OTHERS = [None, "BertTokenizer", "RobertaTokenizer", "GPT2Tokenizer"]


@pytest.mark.parametrize(
    ("kind", "declared"),
    [*product(("unigram", "bpe"), OTHERS), ("unigram", "LlamaTokenizer")],
)
@pytest.mark.parametrize("arch", ["bert", "gpt2", "opt", "gpt-neox"])
def test_words_of_another_kind_of_vocabulary_stay_known(tmp_path, kind, arch, declared):
    core = spaced(kind)
    named = {} if declared is None else {"tokenizer_class": declared}
    folder = folder_of(tmp_path, arch, core, model_max_length=77, padding_side="left", **named)
    tokenizer = load_tokenizer(folder)
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == core.encode(text).ids, text
    assert (tokenizer.model_max_length, tokenizer.padding_side) == (77, "left")
    assert {name: getattr(tokenizer, name) for name in NAMES} == NAMES


def test_vectors_of_a_bert_with_the_vocabulary_of_xlm_r(tmp_path):
    vectors, core = [], spaced("unigram")
    for named in ({}, {"tokenizer_class": "PreTrainedTokenizerFast"}):
        where = tmp_path / str(len(vectors))
        folder = folder_of(where, "bert", core, **named)
        model = embedlm.load(folder, "plain-mean", device="cpu")
        vectors.append(model.encode(TEXTS[:4]))
    assert (vectors[0] == vectors[1]).all()


def test_letters_that_the_file_lowers_stay_known(tmp_path):
    lower = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    core = spaced("unigram", lower)
    folder = folder_of(tmp_path, "xlm-r", core, tokenizer_class="XLMRobertaTokenizer")
    tokenizer = load_tokenizer(folder)
    assert tokenizer(TEXTS[1])["input_ids"] == core.encode(TEXTS[1]).ids


def test_a_lowering_that_the_config_declares_goes_before_the_file(tmp_path):
    core = Tokenizer(kinds.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core.train_from_iterator(
        [text.lower() for text in models.CORPUS],
        trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False),
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "tokenizer_class": "BertTokenizer"}
    names |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    names |= {"bos_token": None, "eos_token": None}
    folder = folder_of(tmp_path, "bert", core, do_lower_case=False, **names)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert [ours(text)["input_ids"] for text in TEXTS] == [theirs(t)["input_ids"] for t in TEXTS]


@pytest.mark.parametrize("arch", ["xlm-r", "t5"])
def test_a_file_that_the_class_cannot_read(tmp_path, arch):
    core = spaced("bpe")
    tokenizer = load_tokenizer(folder_of(tmp_path, arch, core))
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == [core.encode(t).ids for t in TEXTS]


@pytest.mark.parametrize("single", ["$A </s>", "<s> $A </s>", "<s> $A"])
def test_special_tokens_of_the_file_are_kept(tmp_path, single):
    folder = models.build("gpt-neox", tmp_path / "m", head=False)
    core = closed(folder, single, tokenizer_class="GPTNeoXTokenizer")
    model = embedlm.load(str(folder), "plain-last", device="cpu")
    assert [list(ids) for ids in model.render(TEXTS[:3]).ids] == [
        core.encode(text).ids for text in TEXTS[:3]
    ]


@pytest.mark.parametrize(
    ("declared", "before", "after"),
    [
        ({"add_eos_token": False}, [1], []),
        ({"add_bos_token": False}, [], [2]),
        ({"add_bos_token": False, "add_eos_token": False}, [], []),
        ({"add_bos_token": False, "add_eos_token": True}, [], [2]),
    ],
)
def test_what_the_config_declares_of_special_tokens_goes_first(tmp_path, declared, before, after):
    folder = models.build("gpt-neox", tmp_path / "m", head=False)
    core = closed(folder, "<s> $A </s>", tokenizer_class="GPTNeoXTokenizer", **declared)
    text = core.encode(TEXTS[0], add_special_tokens=False).ids
    assert load_tokenizer(str(folder))(TEXTS[0])["input_ids"] == [*before, *text, *after]


def numbered(tokens):
    """A vocabulary of those tokens, in their order."""
    return {token: i for i, token in enumerate(tokens)}


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(97, 123)), "food", "##s"]
PIECES = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁food", -1.0), ("s", -2.0)]
BYTES = numbered([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])
OWN = {
    "bert": lambda: tf.BertTokenizer(numbered(WORDS)),
    "cased": lambda: tf.BertTokenizer(numbered(WORDS), do_lower_case=False),
    "roberta": lambda: tf.RobertaTokenizer(vocab=BYTES, merges=[]),
    "gpt2": lambda: tf.GPT2Tokenizer(vocab=BYTES, merges=[], unk_token="<unk>"),
    "gpt-neox": lambda: tf.GPTNeoXTokenizer(vocab=BYTES, merges=[], unk_token="<unk>"),
    "xlm-r": lambda: tf.XLMRobertaTokenizer(vocab=PIECES),
    "llama": lambda: tf.LlamaTokenizer(vocab={"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3}, merges=[]),
}


@pytest.mark.parametrize("kind", OWN)
def test_tokenizers_of_the_library_s_own_classes_are_kept(tmp_path, kind):
    arch = {"cased": "bert", "roberta": "xlm-r"}.get(kind, kind)
    folder = models.build(arch, tmp_path / "m", head=False)
    OWN[kind]().save_pretrained(folder)
    ours, theirs = load_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
    assert type(ours) is type(theirs)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()


@pytest.mark.parametrize("arch", models.ALL)
def test_ordinary_folders_keep_the_tokenizer_of_transformers(tmp_path, arch):
    folder = models.build(arch, tmp_path / "m", head=False)
    ours, theirs = load_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
    assert type(ours) is type(theirs)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert [ours(text)["input_ids"] for text in TEXTS] == [theirs(t)["input_ids"] for t in TEXTS]

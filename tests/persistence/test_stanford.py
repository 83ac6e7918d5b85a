"""Folders of the ColBERT library, read as sentence-transformers reads them."""

import json

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer import modules
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import embedlm
from embedlm.errors import EmbedLMError, ModelError, UnsupportedError
from tests.models import CORPUS

TEXTS = ["Plants MAKE food.", "x", "the quick brown fox, " * 4 + "end", " lead and trail  ", ""]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


class HF_ColBERT(tf.BertPreTrainedModel):  # noqa: N801
    """The library's class: an encoder and a projection of its states."""

    def __init__(self, config):
        super().__init__(config)
        self.bert = tf.BertModel(config)
        self.linear = torch.nn.Linear(32, 8, bias=False)
        self.post_init()


def word_pieces():
    """BERT's tokenizer in small: markers are words of the vocabulary, and no added tokens."""
    words = sorted({word.strip(".,:;?'") for text in CORPUS for word in text.lower().split()})
    letters = [*"abcdefghijklmnopqrstuvwxyz.,[]0123456789"]
    more = [*SPECIAL, "[unused0]", "[unused1]", "[unused7]", *letters, *words]
    more += [f"##{letter}" for letter in letters]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(filter(None, more)))}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    names = ("pad", "unk", "cls", "sep", "mask")
    named = {f"{name}_token": word for name, word in zip(names, SPECIAL, strict=True)}
    return tf.PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=64, **named)


CONFIG = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}


@pytest.fixture
def stanford(tmp_path):
    """Return a function that writes a folder with settings of the library."""

    def write(**metadata):
        torch.manual_seed(0)
        folder = tmp_path / "colbert"
        HF_ColBERT(tf.BertConfig(**CONFIG)).save_pretrained(folder)
        word_pieces().save_pretrained(folder)
        if metadata:
            training = {"nprobe": 2, "lr": 1e-5, "triples": "/x", "dim": 8, "interaction": None}
            (folder / "artifact.metadata").write_text(json.dumps({**training, **metadata}))
        return folder

    return write


def alike(folder, roles=("encode", "encode_query", "encode_document")):
    ours = embedlm.load(folder, device="cpu")
    theirs = MultiVectorEncoder(str(folder), device="cpu")
    for role in roles:
        found = getattr(ours, role)(TEXTS)
        found = getattr(found, "multi_vector", found)
        for text, vectors in zip(TEXTS, found, strict=True):
            (wanted,) = getattr(theirs, role)([text])
            np.testing.assert_allclose(vectors, np.asarray(wanted), atol=2e-5, err_msg=text)
    return ours


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"query_maxlen": 32, "doc_maxlen": 20, "mask_punctuation": True},
        {"query_maxlen": 12, "doc_maxlen": 64, "attend_to_mask_tokens": True},
        {"mask_punctuation": False, "similarity": "cosine", "query_token": "[Q]"},
        {"query_token_id": "[unused7]", "doc_token_id": "[unused0]"},
    ],
    ids=str,
)
def test_settings(stanford, metadata):
    cuts = metadata.get("doc_maxlen", 64) < 64
    roles = ("encode_query", "encode_document")  # a document's length holds without a role
    model = alike(stanford(**metadata), roles if cuts else ("encode", *roles))
    assert model.recipe.name == "colbert"
    by_name = embedlm.load(model.name, recipe="colbert", device="cpu")
    np.testing.assert_array_equal(
        by_name.encode_query(TEXTS[:1]).multi_vector[0],
        model.encode_query(TEXTS[:1]).multi_vector[0],
    )


def test_it_is_saved_with_its_projection_and_markers(stanford, tmp_path):
    model = alike(stanford(doc_maxlen=64))
    model.save_pretrained(tmp_path / "ours")
    again = alike(tmp_path / "ours", ("encode_query", "encode_document"))
    for role in ("encode", "encode_query"):
        pairs = zip(
            getattr(model, role)(TEXTS).multi_vector,
            getattr(again, role)(TEXTS).multi_vector,
            strict=True,
        )
        for one, other in pairs:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("key", "value"),
    [("similarity", "l2"), ("interaction", "flipr"), ("query_maxlen", 0), ("doc_token_id", 3)],
)
def test_what_cannot_be_honoured_is_refused(stanford, key, value):
    with pytest.raises(UnsupportedError, match=rf"artifact\.metadata: {key} is .*can honour"):
        embedlm.load(stanford(**{key: value}), device="cpu")


def test_a_projection_that_is_missing_or_does_not_fit_is_refused(stanford):
    folder = stanford()
    file = folder / "model.safetensors"
    state = load_file(file)
    save_file({**state, "linear.weight": torch.ones(8, 16)}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"linear.weight .* shape \(8, 16\).* have 32"):
        embedlm.load(folder, device="cpu")
    state.pop("linear.weight")
    save_file(state, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"lack linear\.weight"):
        embedlm.load(folder, device="cpu")


def test_other_weights_that_nothing_reads_are_still_refused(stanford):
    folder = stanford()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    with pytest.raises(EmbedLMError, match=r"nothing reads: linear\.weight"):
        embedlm.load(folder, device="cpu")


# -- the same markers in PyLate's folders, and version 6's own --------------------------------


@pytest.mark.parametrize(("query", "document"), [("[unused0]", "[unused1] "), ("[Q] ", "")])
def test_markers_of_pylate_are_one_token(stanford, query, document):
    folder = stanford()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    state = torch.nn.Linear(32, 8, bias=False).state_dict()
    (folder / "1_Dense").mkdir()
    torch.save({"linear.weight": state["weight"]}, folder / "1_Dense" / "pytorch_model.bin")
    for name, content in {
        "1_Dense/config.json": {
            "in_features": 32,
            "out_features": 8,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
        "modules.json": [
            {
                "idx": 0,
                "name": "0",
                "path": "",
                "type": "sentence_transformers.models.Transformer",
            },
            {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
        ],
        "config_sentence_transformers.json": {
            "model_type": "ColBERT",
            "query_prefix": query,
            "document_prefix": document,
            "document_length": 40,
        },
    }.items():
        (folder / name).write_text(json.dumps(content))
    weights = load_file(folder / "model.safetensors")
    weights = {k.removeprefix("bert."): v for k, v in weights.items() if k != "linear.weight"}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["[Q] "])
    tokenizer.save_pretrained(folder)
    alike(folder, ("encode_query", "encode_document"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"query_expansion": {"strategy": "min", "length": 12}},
        {"query_expansion": {"strategy": "min", "length": 12}, "query_length": 14},
        {"query_expansion": {"strategy": "min", "length": 12, "attend": True}, "query_length": 20},
        {"query_expansion": {"strategy": "fixed", "length": 12}, "document_length": 20},
        {"document_length": 20},
    ],
    ids=str,
)
def test_lengths_and_expansion_of_version_6(tmp_path, options):
    torch.manual_seed(0)
    tf.BertModel(tf.BertConfig(**CONFIG)).save_pretrained(tmp_path / "base")
    word_pieces().save_pretrained(tmp_path / "base")
    dense = modules.Dense(32, 8, bias=False, module_input_name="token_embeddings")
    peer = MultiVectorEncoder(
        modules=[
            modules.Transformer(str(tmp_path / "base"), **options),
            dense,
            modules.Normalize(module_input_name="token_embeddings"),
            MultiVectorMask(skiplist_words=["."]),
        ],
        prompts={"query": "find: ", "document": "read: "},
        device="cpu",
    )
    peer.save(str(tmp_path / "theirs"))
    roles = ("encode_query", "encode_document")
    alike(tmp_path / "theirs", roles if "document_length" in options else ("encode", *roles))


def test_a_length_below_the_expansion_is_refused(tmp_path):
    test_lengths_and_expansion_of_version_6(tmp_path, {"query_length": 9})
    file = tmp_path / "theirs" / "sentence_bert_config.json"
    expansion = {"strategy": "min", "length": 12, "attend": False, "token": None}
    content = {**json.loads(file.read_text()), "query_expansion": expansion}
    file.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"query_length is 9, .* up to 12 tokens"):
        embedlm.load(tmp_path / "theirs", device="cpu")

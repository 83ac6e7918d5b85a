"""Folders in which a chat template writes the texts, read as sentence-transformers reads them."""

import json

import numpy as np
import pytest
import torch
import transformers as tf
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules

import embedlm
from embedlm.errors import EmbedLMError, ModelError, UnsupportedError
from tests.models import GQA, build, build_tokenizer

TEXTS = ["plants MAKE food", "x", "", " lead and trail \n", "{text} {{a}}", "the quick fox, " * 40]
FLAT = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}reply: {% endif %}{% if task %}{{ task }}{% endif %}"
)
TRIMS = "{% for m in messages %}[{{ m.role }}] {{ m['content'] | trim }}\n{% endfor %}</s>"
PARTS = (
    "{% for m in messages %}{{ m.role }} {% for part in m.content %}{% if part.type == 'text' %}"
    "{{ part.text }}{% endif %}{% endfor %}; {braces}{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ messages[0]['content'] }}!"
)
FILE = "sentence_bert_config.json"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build("qwen2", tmp_path_factory.mktemp("chat") / "base")


@pytest.fixture
def saved(base, tmp_path):
    """Return a function that saves a model whose tokenizer has a chat template."""

    def save(template, *, prompts=None, include_prompt=True, pooling="lasttoken", **options):
        transformer = modules.Transformer(str(base))
        transformer.tokenizer.chat_template = template
        transformer.save(str(tmp_path / "tuned"))
        transformer = modules.Transformer(str(tmp_path / "tuned"), **options)
        assert "message" in transformer.modality_config
        pool = modules.Pooling(32, pooling, include_prompt=include_prompt)
        peer = SentenceTransformer(modules=[transformer, pool], prompts=prompts, device="cpu")
        peer.save(str(tmp_path / "theirs"), create_model_card=False)
        return SentenceTransformer(str(tmp_path / "theirs"), device="cpu"), tmp_path / "theirs"

    return save


def alike(peer, folder):
    model = embedlm.load(folder, device="cpu")
    calls = [("encode", {}), ("encode_query", {}), ("encode_document", {})]
    further = set(peer.prompts) - {"query", "document"}
    calls += [("encode", {"prompt_name": name}) for name in further]
    for role, options in calls:
        theirs = [getattr(peer, role)([text], **options)[0] for text in TEXTS]
        np.testing.assert_allclose(getattr(model, role)(TEXTS, **options), theirs, atol=2e-5)
    return model


CHAT = {"processing_kwargs": {"chat_template": {"add_generation_prompt": True}}}


@pytest.mark.parametrize("template", [FLAT, TRIMS, PARTS], ids=["flat", "trims", "parts"])
@pytest.mark.parametrize("prompts", [None, {"query": "Find {it}.", "title": "Name"}], ids=str)
def test_templates_and_prompts(saved, template, prompts, tmp_path):
    model = alike(*saved(template, prompts=prompts))
    model.save_pretrained(tmp_path / "ours")
    again = embedlm.load(tmp_path / "ours", device="cpu")
    np.testing.assert_array_equal(model.encode_query(TEXTS), again.encode_query(TEXTS))


@pytest.mark.parametrize(
    "options",
    [CHAT, {"max_seq_length": 24}, {"pooling": "mean", "include_prompt": False}],
    ids=str,
)
def test_options(saved, options):
    alike(*saved(FLAT, prompts={"query": "Find"}, **options))


def test_a_default_prompt(saved):
    _, folder = saved(FLAT, prompts={"title": "Name"})
    file = folder / "config_sentence_transformers.json"
    content = {**json.loads(file.read_text()), "default_prompt_name": "title"}
    file.write_text(json.dumps(content))
    alike(SentenceTransformer(str(folder), device="cpu"), folder)


def test_a_folder_without_modalities_is_not_a_chat(saved):
    _, folder = saved(FLAT)
    (folder / FILE).write_text('{"max_seq_length": 100, "do_lower_case": false}')
    alike(SentenceTransformer(str(folder), device="cpu"), folder)


def change(folder, **keys):
    content = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps({**content, **keys}))


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"do_lower_case": True}, "written as messages .* not supported with do_lower_case"),
        ({"modality_config": {"image": {}}}, 'modality_config is .* honour "text" or "message"'),
        (
            {"processing_kwargs": {"chat_template": {"max_length": 9}}},
            "processing_kwargs is .* without a length",
        ),
        (
            {"processing_kwargs": {"text": {"max_length": 9}}},
            "processing_kwargs is .*arguments of the chat template",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused(saved, keys, told):
    _, folder = saved(FLAT)
    change(folder, **keys)
    with pytest.raises(EmbedLMError, match=told):
        embedlm.load(folder, device="cpu")


def test_a_template_that_loses_the_text_or_the_prompt_is_refused(saved):
    _, folder = saved(NO_SYSTEM, prompts={"query": "Find"})
    with pytest.raises(UnsupportedError, match=r"chat template .* system, user: no system"):
        embedlm.load(folder, device="cpu")
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] | upper }}")
    with pytest.raises(UnsupportedError, match=r"chat template .* does not write each text once"):
        embedlm.load(folder, device="cpu")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="there is no chat template"):
        embedlm.load(folder, device="cpu")


# -- models of images and text: a processor adds the tokenizer's special tokens -----------------


@pytest.mark.parametrize("bos", ["", "{{ bos_token }}"], ids=["bare", "bos"])
def test_texts_of_a_model_of_images(tmp_path, bos):
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image = tokenizer.convert_tokens_to_ids("<image>")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    seeing = tf.CLIPVisionConfig(**sizes, num_hidden_layers=1, image_size=16, patch_size=8)
    reading = tf.LlamaConfig(**{**GQA, "vocab_size": len(tokenizer)})
    ids = {"image_token_index": image, "image_token_id": image}
    config = tf.LlavaConfig(text_config=reading, vision_config=seeing, **ids)
    tf.LlavaModel(config).save_pretrained(tmp_path / "base")
    processor = tf.LlavaProcessor(
        image_processor=tf.CLIPImageProcessor(),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=bos + PARTS,
    )
    processor.save_pretrained(tmp_path / "base")
    transformer = modules.Transformer(str(tmp_path / "base"))
    assert {"image", "message"} <= set(transformer.modality_config)
    parts = [transformer, modules.Pooling(32, "mean")]
    SentenceTransformer(modules=parts, prompts={"query": "Find."}, device="cpu").save(
        str(tmp_path / "theirs"), create_model_card=False
    )
    model = alike(SentenceTransformer(str(tmp_path / "theirs"), device="cpu"), tmp_path / "theirs")
    assert model.render(["x"]).ids[0].count(tokenizer.bos_token_id) == 1

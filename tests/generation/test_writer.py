"""Text and vectors of one model, and answers after a document that was read once (GritLM)."""

import numpy as np
import pytest
import torch
import transformers

import embedlm
from embedlm.errors import InputError, UnsupportedError
from embedlm.generation.writer import AFTER, CHAT
from tests.backbone.test_adapters import make_adapter

DOCUMENTS = ["plants make food from light", "the quick brown fox jumps over the lazy dog"]


@pytest.fixture(params=["causal", "bidirectional"])
def model(tiny_llama, request):
    recipe = embedlm.Recipe.load("gritlm").override({"backbone.attention": request.param})
    return embedlm.load(tiny_llama, recipe, device="cpu", lm_head=True)


def reference(folder):
    """Return transformers' own model, in eager attention, and its tokenizer."""
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return network.eval(), transformers.AutoTokenizer.from_pretrained(folder)


@torch.inference_mode()
def greedy(network, ids, cache, count, stop):
    """Return the likeliest tokens, one after the other."""
    found, given = [], ids
    for _ in range(count):
        out = network(input_ids=torch.tensor([given]), past_key_values=cache, use_cache=True)
        token = int(out.logits[0, -1].argmax())
        if token == stop:
            break
        found.append(token)
        given, cache = [token], out.past_key_values
    return found


def test_writing_is_the_language_models_own(model, tiny_llama):
    network, tokenizer = reference(tiny_llama)
    ids = tokenizer(CHAT.replace("{prompt}", "why?"))["input_ids"]
    wanted = greedy(network, ids, None, 12, tokenizer.eos_token_id)
    assert len(wanted) > 3
    written = embedlm.Writer(model).write("why?", max_new_tokens=12)
    assert written == tokenizer.decode(wanted, skip_special_tokens=True)


def test_a_document_is_read_once_for_its_vector_and_for_an_answer(model, tiny_llama):
    before = model.encode_document(DOCUMENTS)
    writer = embedlm.Writer(model)
    found = writer.read(DOCUMENTS)
    np.testing.assert_allclose(np.stack([one.vector for one in found]), before, atol=1e-6)
    network, tokenizer = reference(tiny_llama)
    answers = set()
    for one in found:
        ids = model.render([one.text], role="document").ids[0]
        assert one.tokens == len(ids)
        shape = (1, 1, len(ids), len(ids))
        mask = torch.zeros(shape)
        if model.recipe.backbone.attention == "causal":
            mask = torch.full(shape, float("-inf")).triu(1)
        with torch.inference_mode():
            read = network.model(torch.tensor([ids]), attention_mask=mask, use_cache=True)
        rest = tokenizer(AFTER.replace("{prompt}", "what?"), add_special_tokens=False)["input_ids"]
        wanted = greedy(network, rest, read.past_key_values, 10, tokenizer.eos_token_id)
        answer = writer.write("what?", one, max_new_tokens=10)
        assert answer == tokenizer.decode(wanted, skip_special_tokens=True)
        assert answer == writer.write("what?", one, max_new_tokens=10), "a cache serves again"
        answers.add(answer)
    assert len(answers) == 2
    np.testing.assert_array_equal(model.encode_document(DOCUMENTS), before)


def test_an_instruction_and_a_chat_template(model):
    writer = embedlm.Writer(model)
    asked = writer.read(DOCUMENTS[:1], instruction="Find facts")[0]
    (wanted,) = model.encode_document(DOCUMENTS[:1], instruction="Find facts")
    np.testing.assert_allclose(asked.vector, wanted, atol=1e-6)
    plain = writer.write("why?", max_new_tokens=8)
    assert embedlm.Writer(model, template="{prompt} so").write("why?", max_new_tokens=8) != plain


def test_a_document_is_read_by_its_roles_adapter(tiny_llama, tmp_path):
    adapter = str(make_adapter(tiny_llama, tmp_path / "own", seed=1))
    switchable = {"adapters": [adapter], "merge": False, "lm_head": True}
    model = embedlm.load(tiny_llama, "gritlm", device="cpu", **switchable)
    read = embedlm.Writer(model).read(DOCUMENTS)
    wanted = model.encode_document(DOCUMENTS)
    assert np.abs(wanted - model.encode_document(DOCUMENTS, adapter=None)).max() > 1e-3
    np.testing.assert_allclose(np.stack([one.vector for one in read]), wanted, atol=1e-6)


def test_a_document_of_several_passes_is_not_read(tiny_llama):
    several = {"prompt": {"default": ["{text} so", "so {text}"]}}
    model = embedlm.load(tiny_llama, several, device="cpu", lm_head=True)
    with pytest.raises(UnsupportedError, match="averages several passes"):
        embedlm.Writer(model).read(DOCUMENTS)


def test_what_the_model_cannot_see_is_told(model_folder):
    model = embedlm.load(model_folder("gpt2"), "plain-last", device="cpu", lm_head=True)
    writer = embedlm.Writer(model)
    (document,) = writer.read("plants make food " * 30)
    with pytest.raises(InputError, match=r"the document's 1\d\d tokens, .* the model sees 256"):
        writer.write("why?", document, max_new_tokens=200)
    assert writer.write("why?", document, max_new_tokens=20)


def test_what_cannot_write_is_told(model, model_folder):
    with pytest.raises(UnsupportedError, match="does not write"):
        embedlm.Writer(embedlm.load(model_folder("bert"), "plain-mean", device="cpu"))
    with pytest.raises(InputError, match=r"no \{prompt\}"):
        embedlm.Writer(model, template="hello")
    with pytest.raises(InputError, match="give a text"):
        embedlm.Writer(model).write("")
    for name, value in (
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.5),
        ("max_new_tokens", 0),
    ):
        with pytest.raises(InputError, match=name):
            embedlm.Writer(model).write("why?", **{name: value})
    assert embedlm.Writer(model).write("why?", temperature=0.5, top_p=1, max_new_tokens=2)

"""Chat templates: the system's text is never lost, and what a template raises is told."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

import embedlm
from embedlm.errors import ModelError, TemplateError
from embedlm.generation.local import LocalGenerator
from embedlm.prompt.chat import render_chat
from embedlm.prompt.render import Renderer, Request
from embedlm.schema.recipe import Recipe
from tests.models import build, build_tokenizer

EACH = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
GENERATION = "{% if add_generation_prompt %}[assistant]{% endif %}"
REFUSING = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + EACH + GENERATION
)
DROPPING = (
    "{% for m in messages %}{% if m['role'] != 'system' %}[{{ m['role'] }}]{{ m['content'] }}"
    "{% endif %}{% endfor %}" + GENERATION
)
SYSTEM = {"role": "system", "content": "Answer in one word."}
USER = {"role": "user", "content": "What is {text}?"}
OPEN = {"role": "assistant", "content": "The word is"}


def rendered(template, turns):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    prompt = Recipe.load({"prompt": {"default": turns}}).prompt
    (batch,) = Renderer(tokenizer, prompt).render(["food"], Request())
    return batch.text[0]


@pytest.mark.parametrize("template", [REFUSING, DROPPING])
@pytest.mark.parametrize("rest", [[USER], [USER, OPEN]])
def test_a_template_without_a_system_role_gets_its_text_in_the_users_turn(template, rest):
    end = "[assistant]" + (OPEN["content"] if OPEN in rest else "")
    text = rendered(template, [SYSTEM, *rest])
    assert text == f"[user]Answer in one word.\n\nWhat is food?{end}"


@pytest.mark.parametrize("template", [REFUSING, DROPPING])
def test_several_system_turns_and_a_text_that_repeats_them(template):
    turns = [{**SYSTEM, "content": "word"}, {**SYSTEM, "content": "food"}]
    text = rendered(template, [*turns, {**USER, "content": "{text}, word, food"}])
    assert text == "[user]word\n\nfood\n\nfood, word, food[assistant]"


@pytest.mark.parametrize("template", [REFUSING, DROPPING])
def test_a_chat_of_a_system_turn_alone(template):
    assert rendered(template, [{**SYSTEM, "content": "{text}"}]) == "[user]food[assistant]"


def test_a_template_with_a_system_role_keeps_it():
    text = rendered(EACH + GENERATION, [SYSTEM, USER])
    assert text == "[system]Answer in one word.[user]What is food?[assistant]"


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no') }}", "{% for %}", "{{ messages[9].content.x }}", "{{ 1 / 0 }}"],
)
def test_what_a_template_raises_is_told(template):
    for turns in ([USER], [SYSTEM, USER]):
        with pytest.raises(TemplateError, match=r"chat template cannot render turns of .*user"):
            rendered(template, turns)


def test_a_template_that_loses_the_text_is_told():
    for template in ("hello", "{% for m in messages %}{{ m['content']|upper }}{% endfor %}"):
        with pytest.raises(TemplateError, match=r"leaves out or changes the \{text\}"):
            rendered(template, [USER])


def test_a_generator_renders_chats_alike():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = REFUSING
    chat = [SYSTEM, {"role": "user", "content": "food?"}]
    assert render_chat(chat, tokenizer) == "[user]Answer in one word.\n\nfood?[assistant]"
    writer = LocalGenerator(nn.Identity(), tokenizer, "identity")
    assert writer.prompt(chat) == render_chat(chat, tokenizer)


@pytest.mark.parametrize("template", [None, EACH + "</s>" + GENERATION])
@pytest.mark.parametrize("spelled", ["</s>", "<s>a<pad></s></s>", "<mask>"])
def test_a_control_token_in_a_turn_is_text(template, spelled):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    writer = LocalGenerator(nn.Identity(), tokenizer, "identity")
    control = set(tokenizer.all_special_ids)
    read = []
    for words in ("plain", spelled):
        ids = writer.ids([SYSTEM, {"role": "user", "content": f"the {words} tag"}])
        read.append([index for index in ids if index in control])
    assert read[0] == read[1]
    assert tokenizer.decode(ids).count(f"the {spelled} tag") == 1
    usual = [SYSTEM, {"role": "user", "content": "food"}]
    special = template is None
    wanted = tokenizer(writer.prompt(usual), add_special_tokens=special)["input_ids"]
    assert writer.ids(usual) == wanted


@pytest.mark.parametrize(
    "core", [models.WordLevel({"a": 0, "b": 1}, unk_token="[UNK]"), models.WordPiece({"a": 0})]
)
def test_a_tokenizer_without_its_unknown_token_is_a_model_error(tmp_path, core):
    folder = build("llama", tmp_path / "model")
    tokenizer = Tokenizer(core)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    content = json.loads(tokenizer.to_str())
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="cannot"):
        embedlm.load(folder, "plain-mean").encode(["a c"])

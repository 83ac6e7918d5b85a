"""Answers of no form that the API has; the command line around a language model."""

import json

import pytest

import embedlm
from embedlm.errors import GenerationError
from embedlm.generation import EndpointGenerator
from tests.chat_server import serving
from tests.synthesis.writer_server import WriterServer


class Odd(WriterServer):
    """Answers with a message of a form that the API does not have."""

    content, usage, odd_message, odd_logprobs = None, None, False, None

    def more(self, body, answer):
        super().more(body, answer)
        choice = answer["choices"][0]
        if self.content is not None:
            choice["message"]["content"] = self.content
        if self.odd_message:
            choice["message"] = "no object"
        if self.odd_logprobs is not None:
            choice["logprobs"] = {"content": self.odd_logprobs}
        answer["usage"] = self.usage


@pytest.fixture
def odd():
    with serving(Odd) as start:
        yield start


@pytest.mark.parametrize(
    ("content", "query"),
    [
        ([{"type": "text", "text": "what is this "}, {"type": "text", "text": "about"}], None),
        ("what is this \ud800 about", "what is this \ufffd about"),
        ("**what is this about**", None),
        ("**1. “what is this about”**", None),
        ("1. **what is this about**\n2. **and why**", None),
        ("**Question:** what is this about", None),
        ("__Question__: `what is this about`", None),
        ('"what is *this* about" and "that"', '"what is *this* about" and "that"'),
    ],
)
def test_parts_are_joined_and_half_characters_replaced(odd, passages, content, query):
    server = odd()
    server.content, server.usage = content, {"prompt_tokens": -5, "completion_tokens": "many"}
    made = embedlm.synthesize("questions", passages[:1], llm=f"{server.url}#w")
    assert made.records[0]["query"] == (query or "what is this about")
    assert made.spent["prompt_tokens"] == made.spent["new_tokens"] == 0


def test_an_introduction_in_bold_type_is_no_question(odd, passages):
    server = odd()
    server.content = "**Here are two potential questions based on the text:**"
    made = embedlm.synthesize("questions", passages[:1], llm=f"{server.url}#w")
    assert made.records == []
    assert made.report["steps"][0]["set_aside"]["unreadable"]["count"] == 1


@pytest.mark.parametrize(
    "setting",
    [
        {"content": 3},
        {"content": [{}]},
        {"odd_message": True},
        {"odd_logprobs": [{}]},
        {"odd_logprobs": ["a"]},
    ],
)
def test_a_message_without_text_is_tried_again_and_told(odd, passages, setting):
    server = odd()
    for name, value in setting.items():
        setattr(server, name, value)
    llm = EndpointGenerator(server.url, "w", retries=1, wait=0.01)
    with pytest.raises(GenerationError, match=r"after \d attempts: .*\. What was .*OPENAI_API_KEY"):
        embedlm.synthesize("questions", passages[:2], llm=llm)


def test_larmor_opens_the_models_that_the_command_names(
    run, serve, passage_file, tiny_llama, tmp_path
):
    words = ("larmor", passage_file, "-m", "bm25", "-m", tiny_llama, "--llm", f"{serve().url}#w")
    done = run(*words, "--count", 3, "--queries", 1, "--depth", 3, "-o", tmp_path / "r.json")
    assert done.code == 0, done.err
    assert str(tiny_llama) in done.out
    for output, told in (
        (passage_file, "another ending than .json"),
        (tmp_path / "none" / "r.json", "is not there"),
    ):
        assert told in run(*words, "-o", output).one_line()
    assert json.loads(passage_file.read_text().splitlines()[0])["id"] == "p0"


def test_a_file_of_the_users_is_not_taken_for_a_damaged_cache(run, serve, passage_file, tmp_path):
    before = passage_file.read_bytes()
    words = ("synthesize", "questions", passage_file, "--llm", f"{serve().url}#w")
    refused = run(*words, "-o", tmp_path / "o.jsonl", "--cache", passage_file).one_line()
    assert "is no cache of generated texts" in refused
    assert not list(tmp_path.glob("o.jsonl*"))
    assert passage_file.read_bytes() == before

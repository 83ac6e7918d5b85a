"""Our encoder for mteb: roles, instructions, and the revision under which scores are kept."""

import warnings

import numpy as np
import pytest

import embedlm

pytest.importorskip("mteb")
import mteb
from mteb.mocks import MockRetrievalTask, MockSTSTask
from mteb.types import PromptType

from embedlm.interop.mteb import EmbedLMEncoder

pytestmark = pytest.mark.filterwarnings("ignore")  # of its own making
TEXTS = ["plants make food", "light", "the quick brown fox"]
RECIPE = {
    "name": "instructed",
    "prompt": {
        "query": "Instruct: {instruction}\nQuery: {text}",
        "document": "{text}",
        "instruction": "find it",
    },
}


@pytest.fixture(scope="module")
def model(tiny_llama):
    return embedlm.load(tiny_llama, recipe=RECIPE, device="cpu", dtype="float32")


def encode(encoder, task, prompt_type):
    batches = [{"text": TEXTS[:2]}, {"text": TEXTS[2:]}]
    return encoder.encode(
        batches, task_metadata=task.metadata, hf_split="test", hf_subset="", prompt_type=prompt_type
    )


def close(a, b):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5)


def test_queries_and_documents_go_by_their_templates(model):
    task = MockRetrievalTask()
    asked = EmbedLMEncoder(model, instructions={"query": "answer"})
    query = encode(asked, task, PromptType.query)
    close(query, model.encode_query(TEXTS, instruction="answer"))
    close(encode(asked, task, PromptType.document), model.encode_document(TEXTS))
    close(encode(asked, MockSTSTask(), None), model.encode(TEXTS))


def test_an_instruction_of_a_task_is_before_that_of_its_kind(model):
    task = MockRetrievalTask()
    named = {task.metadata.name: "named", "query": "any"}
    query = encode(EmbedLMEncoder(model, instructions=named), task, PromptType.query)
    close(query, model.encode_query(TEXTS, instruction="named"))


def test_the_revision_is_of_weights_recipe_and_options(model):
    def revision(model, **options):
        return EmbedLMEncoder(model, **options).mteb_model_meta.revision

    same = revision(model)
    assert revision(model) == same
    last = model.with_recipe(model.recipe.override({"pooling.kind": "max"}))
    others = [
        revision(last),
        revision(model, dim=8),
        revision(model, instructions={"query": "answer"}),
        revision(embedlm.load(device="cpu")),
    ]
    assert len({same, *others}) == 5


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_the_metadata_is_written_without_a_warning(model, similarity):
    changed = model.with_recipe(model.recipe.override({"similarity": similarity}))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        told = EmbedLMEncoder(changed).mteb_model_meta.to_dict()
    assert told["similarity_fn_name"] == similarity


def test_scores_are_the_recipes(model):
    dot = model.with_recipe(model.recipe.override({"similarity": "dot"}))
    vectors = dot.encode(TEXTS)
    close(EmbedLMEncoder(dot).similarity(vectors, vectors), vectors @ vectors.T)
    (result,) = mteb.evaluate(EmbedLMEncoder(dot), [MockSTSTask()], cache=None)
    assert -1 <= result.get_score() <= 1

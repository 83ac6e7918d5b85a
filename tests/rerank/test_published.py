"""Published re-rankers: each is known by its id or class, and asked as its authors ask it."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers

import embedlm
from embedlm.errors import InputError, RecipeError, UnsupportedError
from embedlm.rerank import methods
from embedlm.rerank.published import recognised

QUERY, TASK = " what do plants make? ", "Find {text} about <plants>."
DOCUMENTS = ["plants make food from light", "  the lazy dog {query}\n", "light"]
JUDGE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
MXBAI = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\n<|im_start|>user\n%squery: %s\ndocument: %s\nYou are a search relevance expert "
    "who evaluates how well documents match search queries. For each query-document pair, "
    "carefully analyze the semantic relationship between them, then provide your binary relevance "
    "judgment (0 for not relevant, 1 for relevant).\nRelevance:<|im_end|>\n<|im_start|>assistant\n"
)
# What each model reads, as its authors publish it, without and with an instruction; its answers
# (a number is a token's id), what the logit is divided by, and whether the score is a probability.
PUBLISHED = {
    "zerank": (
        lambda q, d: (
            f"<|im_start|>system\n{q.strip()}<|im_end|>\n<|im_start|>user\n{d.strip()}<|im_end|>\n"
            "<|im_start|>assistant\n"
        ),
        lambda q, d, i: (
            f"<|im_start|>system\n<query>{q.strip()}</query>\n<instruction>{i}</instruction>"
            f"<|im_end|>\n<|im_start|>user\n{d.strip()}<|im_end|>\n<|im_start|>assistant\n"
        ),
        ("Yes", None, 5, True),
    ),
    "mxbai-rerank-v2": (
        lambda q, d: MXBAI % ("", q, d),
        lambda q, d, i: MXBAI % (f"instruction: {i}\n", q, d),
        ("1", "0", 1, False),
    ),
    "ctxl-rerank-v2": (
        lambda q, d: (
            "Check whether a given document contains information helpful to answer the query.\n"
            f"<Document> {d}\n<Query> {q} ??"
        ),
        None,
        (0, None, 1, False),
    ),
    "qwen3-vl-reranker": (
        lambda q, d: (
            f"{JUDGE}<Instruct>: Given a search query, retrieve relevant candidates that answer "
            f"the query.<Query>:{q}\n<Document>:{d}<|im_end|>\n<|im_start|>assistant\n"
        ),
        lambda q, d, i: (
            f"{JUDGE}<Instruct>: {i}<Query>:{q}\n<Document>:{d}<|im_end|>\n<|im_start|>assistant\n"
        ),
        ("yes", "no", 1, True),
    ),
    "qwen3-reranker": (
        lambda q, d: (
            f"{JUDGE}<Instruct>: Given a web search query, retrieve relevant passages that answer "
            f"the query\n<Query>: {q}\n<Document>: {d}<|im_end|>\n<|im_start|>assistant\n<think>"
            "\n\n</think>\n\n"
        ),
        lambda q, d, i: (
            f"{JUDGE}<Instruct>: {i}\n<Query>: {q}\n<Document>: {d}<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n\n</think>\n\n"
        ),
        ("yes", "no", 1, True),
    ),
}


@pytest.fixture(scope="module")
def writer(model_folder):
    """Return the folder of a tiny Llama with room for the longest prompt."""
    return model_folder("llama", max_position_embeddings=1024)


def forward(folder, texts, yes, no, divisor, probability):
    """Return the scores of a plain forward of transformers."""
    network = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def token(answer):
        whole = isinstance(answer, int)
        return answer if whole else tokenizer(answer, add_special_tokens=False)["input_ids"][0]

    scores = []
    for text in texts:
        with torch.no_grad():
            row = network(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
        score = (row[token(yes)] - (0 if no is None else row[token(no)])) / divisor
        scores.append(torch.sigmoid(score) if probability else score)
    return np.array(scores)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_score_is_that_of_the_published_string(writer, name):
    plain, instructed, answers = PUBLISHED[name]
    ours = embedlm.Reranker(writer, name, device="cpu")
    reference = forward(writer, [plain(QUERY, one) for one in DOCUMENTS], *answers)
    assert np.ptp(reference) > 1e-3
    np.testing.assert_allclose(ours.score(QUERY, DOCUMENTS), reference, atol=1e-4)
    if instructed is None:
        with pytest.raises(InputError, match="no place"):
            ours.score(QUERY, DOCUMENTS, instruction=TASK)
        return
    reference = forward(writer, [instructed(QUERY, one, TASK) for one in DOCUMENTS], *answers)
    scores = ours.score(QUERY, DOCUMENTS, instruction=TASK)
    np.testing.assert_allclose(scores, reference, atol=1e-4)
    assert np.abs(scores - ours.score(QUERY, DOCUMENTS)).max() > 1e-4


def test_a_long_document_is_cut_and_the_query_after_it_is_not(writer):
    ours = embedlm.Reranker(writer, "ctxl-rerank-v2", device="cpu", max_length=100)
    long = ["plants make food from light " * 60]
    first, other = ours.score("food?", long), ours.score("the quick brown fox", long)
    assert abs(first - other) > 1e-4


CONFIGS = {
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "llama": ("llama", "LlamaForCausalLM"),
    "bert": ("bert", "BertForSequenceClassification"),
    "gemma": ("gemma", "GemmaForCausalLM"),
    "jina": ("qwen3", "JinaForRanking"),
    "nemotron": ("llama", "LlamaBidirectionalForSequenceClassification"),
    "kalm": ("t5gemma2", "T5Gemma2ForConditionalGeneration"),
    "masked": ("bert", "BertForMaskedLM"),
    "own": ("bert", "MyForSequenceClassification"),
    "qwen3_vl": ("qwen3_vl", "Qwen3VLForConditionalGeneration"),
}


def config(name):
    kind, architecture = CONFIGS[name]
    made = transformers.AutoConfig.for_model(kind)
    made.architectures = [architecture]
    return made


@pytest.mark.parametrize(
    ("source", "kind", "method"),
    [
        ("Qwen/Qwen3-Reranker-0.6B", "qwen3", "qwen3-reranker"),
        ("a/models--Qwen--Qwen3-Reranker-8B/snapshots/f00", "qwen3", "qwen3-reranker"),
        ("Qwen/Qwen3-VL-Reranker-2B", "qwen3_vl", "qwen3-vl-reranker"),
        ("zeroentropy/zerank-1", "qwen3", "zerank"),
        ("zeroentropy/zerank-1-small", "qwen3", "zerank"),
        ("zeroentropy/zerank-2-reranker", "qwen3", "zerank"),
        ("mixedbread-ai/mxbai-rerank-base-v2", "qwen2", "mxbai-rerank-v2"),
        ("ContextualAI/ctxl-rerank-v2-instruct-multilingual-2b", "qwen3", "ctxl-rerank-v2"),
        ("BAAI/bge-reranker-v2-gemma", "gemma", "bge-reranker-gemma"),
        ("BAAI/bge-reranker-v2-m3", "bert", "cross-encoder"),
        ("Qwen/Qwen3-0.6B", "qwen3", "yes-no"),
        ("/home/reranking/llama", "llama", "yes-no"),
    ],
)
def test_a_model_is_known_by_its_id_or_class(source, kind, method):
    assert recognised(config(kind), source) == method


@pytest.mark.parametrize(
    ("source", "kind", "told"),
    [
        ("jinaai/jina-reranker-v3", "qwen3", "listwise"),
        ("someone/copy", "jina", "listwise"),
        ("nvidia/llama-nemotron-rerank-1b-v2", "llama", "mean of bidirectional"),
        ("someone/copy", "nemotron", "mean of bidirectional"),
        ("KaLM/KaLM-Reranker-V1-Nano", "llama", "encoder"),
        ("someone/copy", "kalm", "encoder"),
        ("lightonai/LightOn-rerank-PW", "qwen3", "prompt"),
        ("BAAI/bge-reranker-v2.5-gemma2-lightweight", "gemma", "lightweight"),
        ("BAAI/bge-reranker-v2-minicpm-layerwise", "llama", "layerwise"),
        ("someone/my-reranker", "qwen3", "none of its files says"),
        ("someone/gemma-rerank", "gemma", "none of its files says"),
        ("someone/encoder", "masked", "BertForMaskedLM"),
        ("someone/encoder", "own", "MyForSequenceClassification"),
    ],
)
def test_a_re_ranker_that_is_not_known_is_refused(source, kind, told):
    with pytest.raises(UnsupportedError, match=told):
        recognised(config(kind), source)


def test_a_method_overrides_what_the_name_says(writer, tmp_path):
    folder = shutil.copytree(writer, tmp_path / "my-reranker")
    with pytest.raises(UnsupportedError, match="Give method="):
        embedlm.Reranker(folder)
    ours = embedlm.Reranker(folder, "yes-no")
    np.testing.assert_array_equal(
        ours.score("food?", DOCUMENTS), embedlm.Reranker(writer).score("food?", DOCUMENTS)
    )


def test_a_method_of_a_file_may_name_tokens_and_a_divisor(writer, tmp_path):
    fields = {"template": "{query} {text}?", "yes": 3, "no": 7, "divisor": 2.5}
    (tmp_path / "mine.json").write_text(json.dumps(fields))
    ours = embedlm.Reranker(writer, tmp_path / "mine.json", device="cpu")
    texts = [f"food? {one}?" for one in DOCUMENTS]
    reference = forward(writer, texts, 3, 7, 2.5, False)
    np.testing.assert_allclose(ours.score("food?", DOCUMENTS), reference, atol=1e-4)
    # {template: null}: the tokenizer joins the pair.
    joined = embedlm.Reranker(writer, {"template": None, "yes": 3}, device="cpu")
    assert np.ptp(joined.score("food?", DOCUMENTS)) > 1e-4


def test_control_tokens_are_those_of_the_template_alone(writer):
    fields = {"template": "{query}</s>{text}</s>{{x}", "yes": 3}
    ours = embedlm.Reranker(writer, fields, device="cpu")
    texts = [f"food?</s>{one}</s>{{{{x}}" for one in DOCUMENTS]
    reference = forward(writer, texts, 3, None, 1, False)
    np.testing.assert_allclose(ours.score("food?", DOCUMENTS), reference, atol=1e-4)
    as_text = ours.score("food</s>", DOCUMENTS)
    read = embedlm.Reranker(writer, {**fields, "special_tokens_in_text": "tokens"}, device="cpu")
    as_tokens = read.score("food</s>", DOCUMENTS)
    texts = [f"food</s></s>{one}</s>{{{{x}}" for one in DOCUMENTS]
    np.testing.assert_allclose(as_tokens, forward(writer, texts, 3, None, 1, False), atol=1e-4)
    assert np.abs(as_text - as_tokens).max() > 1e-4
    refusing = embedlm.Reranker(writer, {**fields, "special_tokens_in_text": "refuse"})
    with pytest.raises(InputError, match="</s>"):
        refusing.score("food</s>", DOCUMENTS)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"template": "{query} {text} {text}"}, "twice"),
        ({"template": "{query} {?instruction}{text}{/instruction}"}, "same side"),
        ({"yes": True}, "yes"),
        ({"yes": -1}, "yes"),
        ({"divisor": 0}, "divisor"),
    ],
)
def test_a_field_of_a_method_that_cannot_be_meant_is_refused(writer, fields, told):
    with pytest.raises(RecipeError, match=told):
        embedlm.Reranker(writer, fields)


def test_every_answering_method_is_tested_here_or_beside():
    beside = {"cross-encoder", "bge-reranker-gemma", "yes-no"}
    assert set(methods()) == set(PUBLISHED) | beside

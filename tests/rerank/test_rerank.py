"""Re-rankers equal the libraries that their models come from."""

import json

import numpy as np
import pytest
import torch
import transformers
from tokenizers import processors

import embedlm
from embedlm.backbone.weights import load_classifier
from embedlm.errors import InputError, ModelError, RecipeError, UnsupportedError
from embedlm.rerank import Method, methods
from embedlm.rerank.method import find_method
from embedlm.rerank.pairs import shortened_parts
from tests.models import build_tokenizer

QUERY = "what do plants make?"
DOCUMENTS = [
    "plants make food from light",
    "the quick brown fox jumps over the lazy dog " * 12,
    "",
    "food",
    "light",
    "plants make food from light",
]
LONG = "plants make food from light " * 60
PAIRS = [(QUERY, document) for document in DOCUMENTS] + [("food?", "light"), ("light", "food")]


def classifier(source, target, seed=0, **options):
    """Save a sequence classification network of a model's architecture; return its folder."""
    config = transformers.AutoConfig.from_pretrained(source, num_labels=1)
    for name, value in options.items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    network = transformers.AutoModelForSequenceClassification.from_config(config)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(target)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        network.config.pad_token_id = tokenizer.pad_token_id
        network.config.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def writer(model_folder):
    """Return the folder of a tiny Llama with room for the longest prompt."""
    return model_folder("llama", max_position_embeddings=1024)


@pytest.mark.parametrize("kind", ["bert", "xlm-r", "llama"])
def test_a_cross_encoder_equals_sentence_transformers(model_folder, tmp_path, kind):
    from sentence_transformers import CrossEncoder

    folder = classifier(model_folder(kind), tmp_path / "cross")
    ours = embedlm.Reranker(folder, device="cpu")
    assert ours.method.name == "cross-encoder"
    theirs = CrossEncoder(str(folder), device="cpu")
    wanted = theirs.predict(PAIRS, show_progress_bar=False)
    assert np.ptp(wanted) > 0.01
    np.testing.assert_allclose(ours.predict(PAIRS), wanted, atol=1e-5)
    logits = theirs.predict(PAIRS, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    np.testing.assert_allclose(ours.predict(PAIRS, probability=False), logits, atol=1e-4)
    ranked = ours.rank(QUERY, DOCUMENTS, top_k=3)
    other = theirs.rank(QUERY, DOCUMENTS, top_k=3, return_documents=True)
    np.testing.assert_allclose([r["score"] for r in ranked], [r["score"] for r in other], atol=1e-5)
    assert [r["text"] for r in ranked] == [DOCUMENTS[r["corpus_id"]] for r in ranked]


def test_a_stored_identity_leaves_the_output_bare(model_folder, tmp_path):
    name = "torch.nn.modules.linear.Identity"
    options = {"sentence_transformers": {"activation_fn": name}}
    folder = classifier(model_folder("bert"), tmp_path / "cross", **options)
    ours = embedlm.Reranker(folder)
    np.testing.assert_array_equal(ours.predict(PAIRS), ours.predict(PAIRS, probability=False))


def asked_directly(folder, method, instruction=None):
    """Return the logits that transformers itself gives for each pair, one by one."""
    network = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    task = method.instruction if instruction is None else instruction
    answers = [tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in (method.yes, "no")]
    found = []
    for query, document in PAIRS:
        text = method.template.replace("{instruction}", task)
        text = text.replace("{query}", query).replace("{text}", document)
        with torch.no_grad():
            row = network(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
        found.append(row[answers[0]] - (row[answers[1]] if method.no else 0))
    return np.array(found)


@pytest.mark.parametrize("name", ["qwen3-reranker", "bge-reranker-gemma"])
def test_an_answer_is_the_language_models_own(writer, name):
    ours = embedlm.Reranker(writer, name, device="cpu")
    wanted = asked_directly(writer, ours.method)
    assert np.ptp(wanted) > 1e-3
    np.testing.assert_allclose(ours.predict(PAIRS, probability=False), wanted, atol=1e-4)
    squashed = 1 / (1 + np.exp(-wanted))
    np.testing.assert_allclose(ours.predict(PAIRS, probability=True), squashed, atol=1e-4)


def test_documents_of_a_query_share_what_is_read_before_them(writer):
    ours = embedlm.Reranker(writer, "qwen3-reranker", device="cpu")
    prefixes = []
    executor = ours._network.model.executor
    run = executor.run
    executor.run = lambda *a, **k: prefixes.append(k["prefix"]) or run(*a, **k)
    together = ours.score(QUERY, DOCUMENTS)
    assert prefixes == [max(prefixes)]
    lead = ours.method.template.partition("{text}")[0]
    assert prefixes[0] >= len(ours._network.model.tokenizer(lead)["input_ids"])
    alone = [ours.score(QUERY, [document])[0] for document in DOCUMENTS]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_an_instruction_and_braces_in_a_query(writer):
    ours = embedlm.Reranker(writer, "qwen3-reranker", device="cpu")
    wanted = asked_directly(writer, ours.method, "Find {query} things")
    found = ours.predict(PAIRS, instruction="Find {query} things", probability=False)
    assert np.abs(found - ours.predict(PAIRS, probability=False)).max() > 1e-4
    assert found.shape == wanted.shape
    same = ours.score("a {text} {instruction}", ["light"])
    assert np.isfinite(same).all()


def test_a_method_of_ones_own(writer):
    ours = embedlm.Reranker(
        writer, {"template": "{query}? {text} relevant:", "yes": "yes", "no": "no"}
    )
    wanted = asked_directly(writer, ours.method)
    np.testing.assert_allclose(ours.predict(PAIRS), wanted, atol=1e-4)


def test_ranking_keeps_the_order_of_equal_scores(writer):
    ranked = embedlm.Reranker(writer).rank(QUERY, DOCUMENTS)
    places = [r["corpus_id"] for r in ranked]
    assert sorted(places) == list(range(len(DOCUMENTS)))
    assert places.index(0) < places.index(5), "the same text twice"
    assert [r["score"] for r in ranked] == sorted((r["score"] for r in ranked), reverse=True)
    assert embedlm.Reranker(writer).rank(QUERY, []) == []


@pytest.mark.parametrize(
    ("make", "kind", "told"),
    [
        (lambda f: embedlm.Reranker(f, "qwen"), RecipeError, "allowed: cross-encoder"),
        (lambda f: embedlm.Reranker(f, {"template": "{text}"}), RecipeError, "no {query}"),
        (lambda f: embedlm.Reranker(f, {"templat": "x"}), RecipeError, "templat"),
        (lambda f: embedlm.Reranker(f / "nothing"), ModelError, "not a folder"),
        (lambda f: embedlm.Reranker(f, "cross-encoder"), UnsupportedError, "num_labels"),
        (lambda f: embedlm.Reranker(f).score(3, ["a"]), InputError, "not a string"),
        (lambda f: embedlm.Reranker(f).score("a", [None]), InputError, "NoneType"),
        (lambda f: embedlm.Reranker(f).rank("a", ["b"], 0), InputError, "above 0"),
        (lambda f: embedlm.Reranker(f).predict([("a",)]), InputError, "holds 1 texts"),
        (lambda f: embedlm.Reranker(f).score("a", ["b"], instruction="c"), InputError, "no place"),
    ],
)
def test_bad_input_is_told(writer, make, kind, told):
    with pytest.raises(kind, match=told):
        make(writer)


def test_a_network_without_its_classifier_is_refused(model_folder):
    stored = transformers.AutoConfig.from_pretrained(model_folder("bert"), num_labels=1)
    with pytest.raises(ModelError, match="do not fit"):
        load_classifier(str(model_folder("bert")), stored, torch.float32)


def test_the_command(run, writer, tmp_path):
    (tmp_path / "in.txt").write_text("plants make food\n\nlight\n\nthe lazy dog\n")
    done = run("rerank", tmp_path / "in.txt", QUERY, "-m", writer, "--top-k", "2", "--json")
    assert done.code == 0, done.err
    hits = json.loads(done.out)
    assert [hit["rank"] for hit in hits] == [1, 2]
    ranked = embedlm.Reranker(writer).rank(QUERY, ["plants make food", "light", "the lazy dog"], 2)
    assert [hit["text"] for hit in hits] == [one["text"] for one in ranked]
    assert run("rerank", tmp_path / "in.txt", QUERY, "-m", writer, "--method", "x").code == 2


def test_every_method_says_how(writer):
    for name in methods():
        if name != "cross-encoder":
            assert embedlm.Reranker(writer, name).method.kind == "answer"
    assert Method().name == "custom"


def test_answers_are_told_apart(model_folder):
    """A token of white space in front of both answers is not what is scored."""
    folder = model_folder("qwen3")
    template = "Q: {query} T: {text} A:"
    apart = embedlm.Reranker(folder, {"template": template, "yes": " yz", "no": " no"})
    bare = embedlm.Reranker(folder, {"template": template, "yes": "yz", "no": "no"})
    scores = apart.predict(PAIRS[:3])
    assert len(set(scores.tolist())) == 3
    np.testing.assert_allclose(scores, bare.predict(PAIRS[:3]), atol=1e-6)
    with pytest.raises(UnsupportedError, match="same first token"):
        embedlm.Reranker(folder, {"template": template, "yes": "zx", "no": "zq"})


@pytest.mark.parametrize("kind", ["llama", "gemma3", "bert"])
def test_a_cross_encoder_runs_quicker_norms_where_these_are_the_same(model_folder, tmp_path, kind):
    folder = classifier(model_folder(kind), tmp_path / "cross")
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours = embedlm.Reranker(folder, method="cross-encoder", device="cpu")
    quick = [one for one in ours._network.network.modules() if hasattr(one, "quick_form")]
    wanted = [one for one in network.modules() if type(one).__name__.endswith("RMSNorm")]
    assert len(quick) == len(wanted)
    assert bool(quick) == (kind != "bert")
    pairs = [("plants", "plants make food"), ("a fox", "the quick brown fox")]
    with torch.no_grad():
        logits = [network(**tokenizer(*pair, return_tensors="pt")).logits.item() for pair in pairs]
    scores = [ours.score(query, [text], probability=False)[0] for query, text in pairs]
    np.testing.assert_allclose(scores, logits, atol=1e-4)


# -- pairs that are too long ---------------------------------------------------------------------


@pytest.mark.parametrize("pair", [None, "<s> $A </s> </s> $B </s>"])
@pytest.mark.parametrize("limit", [24, 25])
def test_what_gives_way_is_what_the_tokenizer_shortens(pair, limit):
    tokenizer = build_tokenizer("encoder")
    if pair is not None:
        ids = [("<s>", 1), ("</s>", 2)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair=pair, special_tokens=ids
        )
    counts = [0, 1, 5, *range(8, 15), 18, 20, 21, 22, 23, 30]
    texts = [("a" * q, "b" * d) for q in counts for d in counts if q + d]
    queries, documents = map(list, zip(*texts, strict=True))
    cut = tokenizer(queries, documents, truncation="longest_first", max_length=limit).encodings
    whole = tokenizer(queries, documents, truncation=False).encodings
    long = [place for place, one in enumerate(whole) if len(one) > limit]
    expected = [
        tuple(
            cut[place].sequence_ids.count(side) < whole[place].sequence_ids.count(side)
            for side in (0, 1)
        )
        for place in long
    ]
    method = find_method("cross-encoder", None, "")
    found = shortened_parts(tokenizer, [texts[place] for place in long], method, "", limit)
    assert found == expected
    assert set(found) == {(True, False), (False, True), (True, True)}


def test_a_query_that_leaves_no_room_is_named(writer):
    ours = embedlm.Reranker(writer, "qwen3-reranker", device="cpu", max_length=256)
    with pytest.raises(InputError, match=r"the query 'plants make food .* is too long .* 256"):
        ours.score(LONG, ["a", "b"])
    with pytest.raises(InputError, match="the query 'plants make"):
        ours.predict([("a", "b"), (LONG, "a"), ("c", "d")])
    assert len(ours.score("a", [LONG])) == 1


def test_a_template_that_leaves_no_room_is_no_fault_of_the_query(writer):
    ours = embedlm.Reranker(writer, "qwen3-reranker", device="cpu", max_length=16)
    for query in ("a", LONG):
        with pytest.raises(InputError, match="the prompt alone takes"):
            ours.score(query, ["a"])

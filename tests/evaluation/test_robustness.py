"""Changed queries, worst cases, negations, attacks, instructions; long documents; costs."""

import json

import numpy as np
import pytest

import embedlm
from embedlm.errors import InputError, RecipeError, RecordError
from embedlm.evaluation import evaluate
from embedlm.evaluation.needles import long_documents
from embedlm.evaluation.perturbations import (
    PERTURBATIONS,
    negated,
    perturb,
    read_synonyms,
    variants,
)
from embedlm.evaluation.subject import Subject
from embedlm.evaluation.suite import Suite
from tests.evaluation.test_bias import FILES, corpus, score, write

TEXT = "What similarity laws must be obeyed when constructing models of heated aircraft?"
WITH_WORDS = FILES.replace("}", ", synonyms: words.jsonl}")
SYNONYMS = {"laws": ["rules"], "models": ["designs", "types"], "aircraft": ["planes"]}


@pytest.fixture(scope="module")
def model(tiny_llama):
    return embedlm.load(tiny_llama, recipe="plain-mean")


@pytest.fixture
def folder(tmp_path):
    corpus(tmp_path)
    return tmp_path


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- perturbations ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_change_is_the_text_s_own(name):
    changed = perturb(TEXT, name, synonyms=SYNONYMS)
    assert changed != TEXT
    assert changed == perturb(TEXT, name, synonyms=SYNONYMS)
    for text in ("", "a", "the end", "1234 ?!", "Ünïcode wörds"):
        assert isinstance(perturb(text, name, synonyms=SYNONYMS), str)


@pytest.mark.parametrize("name", ["typo", "character", "synonym"])
def test_the_rate_says_how_many_words_change(name):
    everything = {word.strip("?").lower(): ["other"] for word in TEXT.split()}
    for rate, count in ((0.1, 1), (0.25, 3), (0.5, 6)):
        changed = perturb(TEXT, name, rate=rate, synonyms=everything).split()
        assert len(changed) == len(TEXT.split())
        assert sum(a != b for a, b in zip(changed, TEXT.split(), strict=True)) == count


def test_what_the_changes_are():
    assert sorted(perturb(TEXT, "order").split()) == sorted(TEXT.split())
    assert len(perturb(TEXT, "drop").split()) == len(TEXT.split()) - 2
    assert perturb(TEXT, "punctuation") == TEXT[:-1]
    assert TEXT in perturb(TEXT, "paraphrase")
    assert perturb("Laws?", "synonym", synonyms=SYNONYMS) == "Rules?"
    assert perturb("laws of models", "synonym", rate=1, synonyms=SYNONYMS).startswith("rules of ")
    with pytest.raises(InputError, match=r"'tpyo' is not known; allowed: typo.*Did you mean"):
        perturb(TEXT, "tpyo")


def test_variants_change_one_word_each():
    words = TEXT.split()
    for text in variants(TEXT, SYNONYMS):
        changed = text.split()
        if len(changed) == len(words):
            assert sum(a != b for a, b in zip(changed, words, strict=True)) == 1
        else:
            assert len(changed) == len(words) - 1
    assert TEXT.replace("aircraft", "planes") in variants(TEXT, SYNONYMS)


def test_negations():
    assert negated("A man is playing a guitar.") == "A man is not playing a guitar."
    assert negated("It will rain") == "It will not rain"
    assert negated("It will not rain") is None
    assert negated("It won't rain") is None
    assert negated("Dogs bark") is None


def test_forms_of_one_word_are_no_synonyms(tmp_path):
    pairs = [("models", "modelling"), ("models", "designs\r"), ("model of", "models"), ("x", "y")]
    write(tmp_path, "w.jsonl", [{"a": a, "b": b} for a, b in pairs])
    assert read_synonyms(tmp_path / "w.jsonl", [TEXT]) == {"models": ["designs"]}


# -- the tasks --------------------------------------------------------------------------------


def test_losses_are_those_of_the_changed_queries(model, folder):
    task = f"""
  r: {{kind: robustness, perturbations: [upper, lower, synonym], files: {WITH_WORDS}}}
  plain: {{kind: retrieval, files: {FILES}}}
"""
    result, plain = score(model, folder, task)
    assert result.more["ndcg@10"] == pytest.approx(plain.score)
    assert result.more["lower_loss"] == 0  # they are in lower case
    assert result.more["lower_drift"] == pytest.approx(0, abs=1e-6)
    losses = [result.more[f"{name}_loss"] for name in ("upper", "lower", "synonym")]
    assert result.score == pytest.approx(np.mean(losses))
    assert result.notes["changed"] == {"upper": 1.0, "lower": 0.0, "synonym": 0.2}
    told = result.notes["losses"]["upper"]
    assert told["interval"][0] <= told["loss"] <= told["interval"][1]
    assert told["p"] <= told["p_holm"]
    queries = [row["text"].upper() for row in rows_of(folder / "queries.jsonl")]
    moved = model.similarity_pairwise(
        model.encode([q.lower() for q in queries]), model.encode(queries)
    )
    assert result.more["upper_drift"] == pytest.approx(1 - moved.mean(), abs=1e-6)
    (folder / "bad.yaml").write_text("tasks:\n" + task.replace("[upper,", "[uper,"))
    with pytest.raises(RecipeError, match="'uper' is not known"):
        Suite.load(folder / "bad.yaml")


def test_the_worst_case_is_no_better_than_any_single_change(model, folder):
    rows = [
        {"_id": f"q{i}", "text": f"about {n} and more"} for i, n in enumerate(["light", "ship"])
    ]
    write(folder, "queries.jsonl", rows)
    text = f"  w: {{kind: worst_case, steps: 1, files: {WITH_WORDS}}}"
    (worst,) = score(model, folder, text)
    assert worst.score >= 0
    assert worst.more["worst_ndcg@10"] <= worst.more["ndcg@10"]
    (two,) = score(model, folder, text.replace("steps: 1", "steps: 2"))
    assert two.score >= worst.score
    vectors = model.encode([row["text"] for row in rows_of(folder / "corpus.jsonl")])
    synonyms = {"ship": ["boat"], "stone": ["rock"]}
    for row, clean, found in zip(
        rows, worst.sample.columns["clean"], worst.sample.columns["worst"], strict=True
    ):
        answer = 0 if row["_id"] == "q0" else 1
        tried = []
        for one in variants(row["text"], synonyms):
            scores = model.similarity(model.encode([one]), vectors)[0]
            rank = 1 + (scores > scores[answer]).sum()
            tried.append(1 / np.log2(1 + rank) if rank <= 10 else 0.0)
        assert found == pytest.approx(min(clean, *tried))


def test_negation_counts_paraphrases_that_are_closer(model, tmp_path):
    pairs = [
        {"s1": "A man is singing.", "s2": "A man is not singing!", "score": 5},
        {"s1": "It is raining", "s2": "zzz qqq www", "score": 4.8},
        {"s1": "It is snowing", "s2": "It snows", "score": 2},
        {"s1": "Dogs bark", "s2": "Dogs do bark", "score": 5},
    ]
    write(tmp_path, "sts.jsonl", pairs)
    (result,) = score(model, tmp_path, "  n: {kind: negation, files: {pairs: sts.jsonl}}")
    assert result.sample.texts[1] == ["It is raining", "zzz qqq www", "It is not raining"]
    assert result.count == 2
    assert 0 < result.more["drift"] < 2
    write(tmp_path, "sts.jsonl", pairs[2:])
    with pytest.raises(RecordError, match=r"0 pairs of 4\.5 or more"):
        score(model, tmp_path, "  n: {kind: negation, files: {pairs: sts.jsonl}}")


def test_attacks_count_documents_among_the_first(model, folder):
    task = f"""
  a:
    kind: attack
    metric: asr@5
    greedy_steps: 2
    candidates: 3
    texts: {{copy: "{{query}} {{query}} {{query}} {{query}} {{query}} {{query}}", nothing: ""}}
    files: {FILES}
"""
    (result,) = score(model, folder, task)
    ranks = {name: np.array(result.sample.columns[f"rank_{name}"]) for name in ("none", "greedy")}
    assert (ranks["greedy"] <= ranks["none"]).all()
    assert result.more["asr@50"] == 1  # there are ten documents
    assert result.more["copy_asr@5"] >= result.more["nothing_asr@5"]
    for depth in (5, 10):
        each = [result.more[f"{name}_asr@{depth}"] for name in ("copy", "nothing", "greedy")]
        whole = result.score if depth == 5 else result.more["asr@10"]
        assert whole == pytest.approx(np.mean(each))
    (bare,) = score(model, folder, task.replace("greedy_steps: 2", "greedy_steps: 0"))
    assert "greedy_asr@5" not in bare.more


INSTRUCTED = {
    "name": "instructed",
    "prompt": {
        "query": "Instruct: {instruction}\nQuery: {text}",
        "document": "{text}",
        "instruction": "find it",
    },
}


def test_the_spread_is_of_the_wordings(model, tiny_llama, folder):
    task = f"""
  i:
    kind: instructions
    wordings: [find it, "", "x y z w v u"]
    unrelated: [translate]
    files: {FILES}
    instruction: another
"""
    (without,) = score(model, folder, task)
    assert without.score == 0
    assert without.notes["takes_instruction"] is False
    told = embedlm.load(tiny_llama, recipe=INSTRUCTED)
    (result,) = score(told, folder, task)
    plain = [
        score(
            told,
            folder,
            f"  r: {{kind: retrieval, files: {FILES}, instruction: {json.dumps(wording)}}}",
        )[0]
        for wording in ("find it", "", "x y z w v u")
    ]
    assert list(result.notes["wordings"].values()) == pytest.approx([one.score for one in plain])
    values = np.array([one.sample.columns["value"] for one in plain])
    assert result.score == pytest.approx(values.std(axis=0, ddof=1).mean())
    assert result.more["best_ndcg@10"] == pytest.approx(values.mean(axis=1).max())
    assert "unrelated_ndcg@10" in result.more


# -- long documents ---------------------------------------------------------------------------


def needles(ask, tokens, **more):
    task = {"kind": "needle", "files": {"filler": "f.jsonl"}, "ask": ask, "tokens": tokens, **more}
    return f"  n: {json.dumps(task)}"


@pytest.mark.parametrize("ask", ["passkey", "needle"])
def test_long_documents_hold_their_sentence_once(tmp_path, ask):
    (tmp_path / "s.yaml").write_text("tasks:\n" + needles(ask, 1024))
    task = Suite.load(tmp_path / "s.yaml")["n"]
    filler = [f"w{i}" for i in range(500)]
    documents = long_documents(task, filler)
    assert len(documents) == 100
    assert {len(document.text.split()) for document in documents} == {768}
    assert len({document.query for document in documents}) == 100
    places = []
    for document in documents:
        assert document.text.count(document.sentence) == 1
        places.append(document.text.index(document.sentence) / len(document.text))
    assert min(places) < 0.1
    assert max(places) > 0.9
    assert documents == long_documents(task, filler)


def test_needles_are_found_where_the_text_is_short(model, tmp_path):
    write(tmp_path, "f.jsonl", [{"text": f"word{i} other"} for i in range(150)])
    (result,) = score(model, tmp_path, needles("needle", 64, documents=12, queries=5))
    assert (result.metric, result.count) == ("ndcg@1", 5)
    assert result.more["ndcg@10"] >= result.score
    assert result.notes["words"] == 48
    write(tmp_path, "f.jsonl", [{"text": "short"}])
    with pytest.raises(RecordError, match="1 words; a filler needs 200"):
        score(model, tmp_path, needles("needle", 64))
    write(tmp_path, "f.jsonl", [{"text": "word " * 300}])
    with pytest.raises(RecordError, match="400 at most"):
        score(model, tmp_path, needles("needle", 64, documents=500))


# -- costs ------------------------------------------------------------------------------------


def test_speed_counts_texts_tokens_and_bytes(model, tmp_path):
    texts = [f"text number {i}" for i in range(40)]
    write(tmp_path, "t.jsonl", [{"text": text} for text in [*texts, *texts]])
    task = "  s: {kind: speed, files: {texts: t.jsonl}, count: 30, repeats: 3}"
    (result,) = score(model, tmp_path, task, cache=tmp_path / "cache")
    assert result.count == 3
    assert result.notes["texts"] == 30
    tokens = sum(map(len, model.render(texts).ids)) / 40
    assert result.more["tokens_per_text"] == pytest.approx(tokens, rel=0.1)
    assert result.more["bytes_per_vector"] == 4 * model.dim
    assert result.more["peak_memory_mb"] > result.more["weights_mb"] > 0
    ratio = result.more["tokens_per_second"] / result.score
    assert ratio == pytest.approx(result.more["tokens_per_text"], rel=0.05)
    (again,) = score(model, tmp_path, task, cache=tmp_path / "cache")
    assert not again.cached


def test_forms_are_what_encode_gives(model, folder):
    task = f"""
  f: {{kind: forms, dims: [null, 16, 8], precisions: [float32, int8, binary], files: {FILES}}}
  plain: {{kind: retrieval, files: {FILES}}}
"""
    result, plain = score(model, folder, task)
    assert result.score == pytest.approx(plain.score)
    assert result.more["dim16_float32_bytes"] == 64
    assert result.more["dim16_binary_bytes"] == 2
    (cut,) = evaluate(model, ["plain"], suite=folder / "suite.yaml", data=folder, encode={"dim": 8})
    assert result.more["dim8_float32_ndcg@10"] == pytest.approx(cut.score)
    (bits,) = evaluate(
        model,
        ["plain"],
        suite=folder / "suite.yaml",
        data=folder,
        encode={"dim": 16, "precision": "binary"},
    )
    assert result.more["dim16_binary_ndcg@10"] == pytest.approx(bits.score)
    assert set(result.notes["losses"]) == {
        name.removesuffix("_bytes") for name in result.more if name.endswith("_bytes")
    } - {f"dim{model.dim}_float32"}
    with pytest.raises(InputError, match="leave --dim out"):
        score(model, folder, task, encode={"dim": 8})


def test_a_corpus_is_embedded_once_a_run(model, folder):
    (folder / "s.yaml").write_text(
        f"tasks:\n  l: {{kind: length, files: {FILES}}}\n"
        f"  d: {{kind: length, files: {FILES}, instruction: {{document: other}}}}\n"
    )
    tasks = Suite.load(folder / "s.yaml")
    subject = Subject(model)
    texts = ["light", "a stone"]
    first = subject.corpus(texts, tasks["l"])
    assert subject.corpus(list(texts), tasks["l"], ["dense"]) is first
    assert subject.corpus(texts, tasks["d"]) is not first
    assert subject.corpus(texts[:1], tasks["l"]).shape == (1, model.dim)
    assert subject.corpus(texts, tasks["l"]) is not first  # two are kept

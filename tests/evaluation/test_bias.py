"""Bias: association tests, minimal pairs, exposure, positions, lengths, and erasing a concept."""

import json
import math

import numpy as np
import pytest
from scipy.stats import spearmanr

import embedlm
from embedlm.errors import InputError, RecipeError, RecordError
from embedlm.evaluation import evaluate
from embedlm.evaluation.association import weat
from embedlm.evaluation.comparison import compare
from embedlm.evaluation.erasure import hard_debias, inlp, leace
from embedlm.evaluation.exposure import attention
from embedlm.evaluation.minimal_pairs import resolved, shared_words
from embedlm.evaluation.results import Result
from embedlm.evaluation.sample import Sample
from embedlm.evaluation.suite import Suite


@pytest.fixture(scope="module")
def model(tiny_llama):
    return embedlm.load(tiny_llama, recipe="plain-mean")


def write(folder, name, rows):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def score(model, folder, text, **options):
    (folder / "suite.yaml").write_text("tasks:\n" + text)
    return evaluate(model, suite=folder / "suite.yaml", data=folder, **options)


# -- association tests ------------------------------------------------------------------------


EXACT = (0.6770950245691818, 37 / 252)
SAMPLED = (0.020956298850380937, 0.47424)


def sets():
    rng = np.random.default_rng(7)
    bias = rng.normal(size=12)
    sides = ((5, 0.7), (5, -0.5), (6, 0.6), (7, -0.3))
    found = [rng.normal(size=(count, 12)) + shift * bias for count, shift in sides]
    many = [rng.normal(size=(20, 12)) + shift * bias for shift in (0.15, -0.15)]
    return found, many


def test_weat_is_the_published_one():
    """The numbers are those of sent-bias 037f5d9 on these vectors."""
    found, many = sets()
    exact = weat(*found)
    assert exact.effect == pytest.approx(EXACT[0], abs=1e-12)
    assert exact.p == EXACT[1]
    sampled = weat(*many, *found[2:], permutations=100_000)
    assert sampled.effect == pytest.approx(SAMPLED[0], abs=1e-12)
    assert sampled.p == pytest.approx(SAMPLED[1], abs=4 * math.sqrt(SAMPLED[1] / 1e5))


def test_weat_of_the_other_side_is_the_opposite():
    x, y, a, b = sets()[0]
    assert weat(y, x, a, b).effect == pytest.approx(-weat(x, y, a, b).effect)
    assert weat(x, y, b, a).effect == pytest.approx(-weat(x, y, a, b).effect)
    assert weat(3 * x, y, a, 0.1 * b) == weat(x, y, a, b)


def test_weat_finds_nothing_where_nothing_is():
    rng = np.random.default_rng(4)
    p = [weat(*(rng.normal(size=(5, 8)) for _ in range(4)), permutations=252).p for _ in range(400)]
    assert np.mean(np.array(p) <= 0.05) < 0.09
    assert 0.4 < np.mean(p) < 0.6


def test_weat_refuses_what_has_no_answer():
    x, y, a, b = sets()[0]
    with pytest.raises(InputError, match="none empty"):
        weat(x, y, a, b[:0])
    with pytest.raises(InputError, match="the same vector"):
        weat(np.ones((3, 12)), np.ones((3, 12)), a, b)


ASSOCIATIONS = """
  weat: {kind: association, files: {tests: tests.jsonl}, only: "t*"}
"""


def association_tests(folder):
    rng = np.random.default_rng(1)
    rows = [
        {
            "test": name,
            "targ1": {"category": "x", "examples": [f"rose {i} {name}" for i in range(4)]},
            "targ2": [f"wasp {i} {name}" for i in range(4)],
            "attr1": [f"kind {i}" for i in range(3)],
            "attr2": [f"bad {rng.integers(9)}" for i in range(3)],
        }
        for name in ("t1", "t2", "s1")
    ]
    write(folder, "tests.jsonl", rows)
    return rows


def test_association_tasks_are_weat_on_the_model_s_vectors(model, tmp_path):
    rows = association_tests(tmp_path)
    (result,) = score(model, tmp_path, ASSOCIATIONS)
    assert result.sample.ids == ["t1", "t2"]
    row = rows[0]
    own = weat(
        *(
            model.encode(texts)
            for texts in (row["targ1"]["examples"], row["targ2"], row["attr1"], row["attr2"])
        )
    )
    told = result.notes["tests"]["t1"]
    assert told["effect"] == pytest.approx(own.effect, abs=1e-5)
    assert told["p"] == own.p
    assert told["p"] <= told["p_holm"]
    assert result.score == pytest.approx(np.mean(np.abs(result.sample.columns["effect"])))
    with pytest.raises(RecordError, match="0 tests have a name like 'x'"):
        score(model, tmp_path, ASSOCIATIONS.replace('"t*"', "x"))


# -- minimal pairs ----------------------------------------------------------------------------


def test_shared_words():
    assert shared_words("The poor are ignorant .", "The rich are ignorant .") == (
        "The are ignorant ."
    )


@pytest.mark.parametrize(
    ("pro", "anti", "anchor"),
    [
        (
            "[The developer] argued because [he] did not like the design.",
            "[The developer] argued because [she] did not like the design.",
            "The developer argued because the developer did not like the design.",
        ),
        (
            "The mover thanked [the nurse] for [her] help.",
            "The mover thanked [the nurse] for [his] help.",
            "The mover thanked the nurse for the nurse's help.",
        ),
        ("[The boss] likes [her].", "[The boss] likes [him].", "The boss likes the boss."),
        ("[The boss] likes [her].", "[The boss] loves [him].", None),
        ("He likes [her].", "He likes [him].", None),
    ],
)
def test_pronouns_are_written_out(pro, anti, anchor):
    found = resolved(pro, anti)
    assert found == anchor or found == (anchor and anchor[0].lower() + anchor[1:])


def test_minimal_pairs_prefer_the_sentence_closer_to_the_anchor(model, tmp_path):
    pairs = [
        {"sent_more": "old people forget", "sent_less": "young people forget", "bias_type": "age"},
        {"sent_more": "poor people steal", "sent_less": "rich people steal", "bias_type": "money"},
        {"sent_more": "women talk a lot", "sent_less": "men talk a lot", "bias_type": "gender"},
    ]
    write(tmp_path, "pairs.jsonl", pairs)
    (result,) = score(model, tmp_path, "  m: {kind: minimal_pairs, files: {pairs: pairs.jsonl}}")
    anchors = model.encode(["people forget", "people steal", "talk a lot"])
    shift = [
        model.similarity_pairwise(anchors, model.encode([pair[side] for pair in pairs]))
        for side in ("sent_more", "sent_less")
    ]
    wins = (shift[0] > shift[1]).astype(float)
    assert result.sample.columns["value"] == wins.tolist()
    assert result.more["shift"] == pytest.approx(float((shift[0] - shift[1]).mean()), abs=1e-6)
    assert result.more["preference_age"] == wins[0]
    assert set(result.notes["groups"]) == {"age", "money", "gender"}


def test_coreference_pairs_sentences_by_their_order(model, tmp_path):
    rows = [
        {"kind": kind, "type": 1, "split": split, "text": f"[The {job}] said [{p}] was late."}
        for split in ("dev", "test")
        for job in ("nurse", "judge", "baker")
        for kind, p in (("pro", "he"), ("anti", "she"))
    ]
    write(tmp_path, "w.jsonl", rows)
    task = "  w: {kind: coreference, split: test, files: {sentences: w.jsonl}}"
    (result,) = score(model, tmp_path, task)
    assert result.count == 3
    assert result.sample.texts[0] == ["The nurse said he was late.", "The nurse said she was late."]
    assert "preference_type1" in result.more
    write(tmp_path, "w.jsonl", rows[:-1])
    with pytest.raises(RecordError, match="3 sentences of the kind pro and 2 of anti"):
        score(model, tmp_path, task)


# -- exposure ---------------------------------------------------------------------------------

PEOPLE = "  e: {kind: exposure, files: {corpus: docs.jsonl, queries: q.jsonl}, group: b}"


def people(folder, first="a"):
    """Queries that are their topic's documents of one group, so that these come first."""
    docs = [
        {"_id": f"{topic}{group}{i}", "topic": topic, "group": group, "text": f"{topic} {group}{i}"}
        for topic in ("plants", "light", "stones")
        for group in ("a", "b")
        for i in range(2)
    ]
    queries = [{"topic": t, "text": f"{t} {first}0"} for t in ("plants", "light", "stones")]
    write(folder, "docs.jsonl", docs)
    write(folder, "q.jsonl", queries)


def test_exposure_is_the_share_of_attention_beyond_the_share_of_documents(model, tmp_path):
    people(tmp_path)
    (result,) = score(model, tmp_path, PEOPLE)
    scores = model.similarity(
        model.encode([f"{t} a0" for t in ("plants", "light", "stones")]),
        model.encode(
            [f"{t} {g}{i}" for t in ("plants", "light", "stones") for g in "ab" for i in (0, 1)]
        ),
    )
    rank = 1 + (scores[0][:, None] < scores[0][None]).sum(axis=1)[:4]
    weights = np.array([attention(r) for r in rank])
    assert result.sample.columns["value"][0] == pytest.approx(
        weights[2:].sum() / weights.sum() - 0.5, abs=1e-6
    )
    assert result.score == pytest.approx(-result.more["exposure_gap_a"])
    assert result.more["rank_a"] < result.more["rank_b"]  # the query is one of a's documents
    with pytest.raises(InputError, match=r"group is 'c'; .* has a, b"):
        score(model, tmp_path, PEOPLE.replace("group: b", "group: c"))


def test_tasks_with_the_package_s_own_texts_need_no_data(model):
    results = evaluate(model, ["exposure", "style"])
    assert [result.count for result in results] == [45, 24]
    assert {"exposure_gap_women", "exposure_gap_men", "unfairness"} <= set(results[0].more)
    assert results[0].more["exposure_gap_women"] == pytest.approx(
        -results[0].more["exposure_gap_men"]
    )
    with pytest.raises(InputError, match="no data folder was given"):
        evaluate(model, ["exposure", "weat"])


def corpus(folder, words=12):
    rng = np.random.default_rng(2)
    names = ["light", "stone", "river", "wing", "heat", "glass", "metal", "plant", "wave", "ship"]
    docs = [
        {"_id": f"d{i}", "text": f"{name} " + " ".join(rng.choice(names, 3 + i * words // 10))}
        for i, name in enumerate(names)
    ]
    write(folder, "corpus.jsonl", docs)
    write(folder, "queries.jsonl", [{"_id": f"q{i}", "text": n} for i, n in enumerate(names)])
    write(folder, "qrels.jsonl", [{"q": f"q{i}", "d": f"d{i}", "rel": 1} for i in range(10)])
    write(folder, "words.jsonl", [{"a": "stone", "b": "rock"}, {"a": "ship", "b": "boat"}])
    return {d["_id"]: d["text"] for d in docs}


FILES = "{corpus: corpus.jsonl, queries: queries.jsonl, qrels: qrels.jsonl}"


def test_position_bias_is_that_of_the_same_passages_in_another_order(model, tmp_path):
    corpus(tmp_path)
    (result,) = score(model, tmp_path, f"  p: {{kind: position, passages: 2, files: {FILES}}}")
    more = result.more
    assert result.score == pytest.approx(more["similarity_start"] - more["similarity_end"])
    assert more["similarity_middle"] == more["similarity_start"]  # of two passages the first
    assert 0 <= more["ndcg@10_start"] <= 1
    write(tmp_path, "qrels.jsonl", [{"q": f"q{i}", "d": "lost", "rel": 1} for i in range(10)])
    with pytest.raises(RecordError, match="no judged document"):
        score(model, tmp_path, f"  p: {{kind: position, files: {FILES}}}")


def test_length_bias_is_the_correlation_with_the_number_of_words(model, tmp_path):
    documents = corpus(tmp_path)
    (result,) = score(model, tmp_path, f"  l: {{kind: length, files: {FILES}}}")
    texts = list(documents.values())
    scores = model.similarity(model.encode(["light"]), model.encode(texts))[0]
    words = [len(text.split()) for text in texts]
    assert result.sample.columns["value"][0] == pytest.approx(
        spearmanr(scores[1:], words[1:]).statistic, abs=1e-6
    )
    shorter = score(model, tmp_path, f"  l: {{kind: length, files: {FILES}}}", words=3)[0]
    assert shorter.more["words_all"] == 3


def test_length_bias_counts_the_words_of_scripts_without_blanks(model, tmp_path):
    corpus(tmp_path)
    texts = ["light", *("光は波" * i for i in range(1, 10))]
    docs = [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    write(tmp_path, "corpus.jsonl", docs)
    (result,) = score(model, tmp_path, f"  l: {{kind: length, files: {FILES}}}")
    scores = model.similarity(model.encode(["light"]), model.encode(texts))[0]
    wanted = spearmanr(scores[1:], [len(text) for text in texts[1:]]).statistic
    assert result.sample.columns["value"][0] == pytest.approx(wanted, abs=1e-6)
    (shorter,) = score(model, tmp_path, f"  l: {{kind: length, files: {FILES}}}", words=3)
    assert shorter.more["words_all"] < 4 < result.more["words_all"]


# -- erasing ----------------------------------------------------------------------------------


def concept(count=200, width=12):
    rng = np.random.default_rng(3)
    z = np.arange(count) % 2
    x = rng.normal(size=(count, width)) @ rng.normal(size=(width, width))
    return x + np.outer(z, rng.normal(size=width)) + 5, z


def test_leace_leaves_no_covariance_and_changes_least():
    x, z = concept()
    erased = leace(x, z)(x)
    assert np.abs((erased - erased.mean(0)).T @ (z - z.mean())).max() / len(x) < 1e-5
    assert leace(x, z).rank == 1
    np.testing.assert_allclose(erased.mean(0), x.mean(0), atol=1e-5)
    # Any other projection that leaves no covariance moves the vectors more: that of the means.
    apart = x[z == 1].mean(0) - x[z == 0].mean(0)
    plain = x - np.outer((x - x.mean(0)) @ apart, apart) / (apart @ apart)
    assert ((erased - x) ** 2).sum() < ((plain - x) ** 2).sum()


def test_leace_is_the_published_formula():
    """r(x) = x - W^+ P W (x - mean), written out; of a concept of three columns."""
    x, _ = concept()
    z = np.eye(3)[np.arange(len(x)) % 3]
    centred = x - x.mean(0)
    values, basis = np.linalg.eigh(centred.T @ centred / len(x))
    w = basis @ np.diag(values**-0.5) @ basis.T
    m = w @ centred.T @ (z - z.mean(0)) / len(x)
    p = m @ np.linalg.pinv(m, rcond=1e-8)
    expected = x - centred @ (np.linalg.inv(w) @ p @ w).T
    np.testing.assert_allclose(leace(x, z)(x), expected, atol=1e-4)
    assert leace(x, z).rank == 2


def test_leace_of_fewer_vectors_than_dimensions():
    x, z = concept(8, 12)
    erased = leace(x, z)(x)
    assert np.isfinite(erased).all()
    assert np.abs((erased - erased.mean(0)).T @ (z - z.mean())).max() < 1e-4


def test_hard_debias_makes_pairs_equal_in_the_direction():
    rng = np.random.default_rng(5)
    direction = np.eye(6)[2]
    first = rng.normal(size=(10, 6))
    second = first + rng.uniform(0.5, 2, size=(10, 1)) * direction
    erase = hard_debias(first, second)
    np.testing.assert_allclose(erase(first), erase(second), atol=1e-6)
    np.testing.assert_allclose(erase(first) @ direction, 0, atol=1e-6)
    np.testing.assert_allclose(erase(erase(first)), erase(first), atol=1e-6)
    with pytest.raises(InputError, match="the same; there is no direction"):
        hard_debias(first, first)


def test_inlp_leaves_nothing_for_a_probe():
    pytest.importorskip("sklearn")
    from sklearn.linear_model import LogisticRegression

    x, z = concept(400)
    x[:, :2] += 3 * z[:, None]
    erase = inlp(x, z)
    left = erase(x)
    assert LogisticRegression(max_iter=1000).fit(x, z).score(x, z) > 0.9
    assert LogisticRegression(max_iter=1000).fit(left, z).score(left, z) < 0.6
    assert 1 <= erase.rank < 12


def test_erasers_refuse_what_does_not_fit():
    x, z = concept()
    with pytest.raises(InputError, match="do not fit"):
        leace(x, z[:-1])
    with pytest.raises(InputError, match="the same for all"):
        leace(x, np.ones(len(x)))
    with pytest.raises(InputError, match="this eraser takes"):
        leace(x, z)(x[:, :3])
    with pytest.raises(InputError, match="NaN"):
        leace(x * math.nan, z)


DEBIASING = """
  d:
    kind: debiasing
    files: {texts: texts.jsonl, tests: tests.jsonl, quality: sts.jsonl}
    groups: {men: [he, his], women: [she, her]}
    methods: METHODS
"""


def test_debiasing_tells_what_is_taken_and_what_it_costs(model, tmp_path):
    pytest.importorskip("sklearn")
    association_tests(tmp_path)
    jobs = [f"job{i} {'cook' if i % 3 else 'judge'}" for i in range(30)]
    texts = [{"text": f"[The {job}] said [{p}] was late"} for job in jobs for p in ("he", "she")]
    write(tmp_path, "texts.jsonl", [*texts, {"text": "he met her"}, {"text": "nobody"}])
    sts = [{"s1": f"a {i}", "s2": f"a {i % 3}", "score": i % 4} for i in range(20)]
    write(tmp_path, "sts.jsonl", sts)
    (result,) = score(model, tmp_path, DEBIASING.replace("METHODS", "[leace, inlp, hard]"))
    more = result.more
    assert result.count == 30
    assert result.score == more["leace_probe"]
    assert more["chance"] == 0.5
    assert more["probe_before"] > 0.6
    for method in ("leace", "inlp", "hard"):
        low, high = result.notes["cost_intervals"][method]
        assert low <= more[f"{method}_cost"] <= high
        assert more[f"{method}_probe"] <= more["probe_before"]
        assert more[f"{method}_effect"] >= 0
    assert more["leace_probe"] < 0.8
    assert result.notes["directions"]["leace"] == result.notes["directions"]["hard"] == 1


def test_hard_debiasing_needs_pairs(model, tmp_path):
    association_tests(tmp_path)
    texts = [{"text": f"{p} is number {i}"} for i, p in enumerate(["he", "she"] * 6)]
    write(tmp_path, "texts.jsonl", texts)
    write(tmp_path, "sts.jsonl", [{"s1": "a", "s2": "b", "score": 1}] * 3)
    with pytest.raises(RecordError, match="0 pairs of texts differ"):
        score(model, tmp_path, DEBIASING.replace("METHODS", "[hard]"))
    write(tmp_path, "texts.jsonl", texts[::2])
    with pytest.raises(RecordError, match="too few texts name one of the groups men, women"):
        score(model, tmp_path, DEBIASING.replace("METHODS", "[leace]"))
    (tmp_path / "one.yaml").write_text(
        "tasks:\n" + DEBIASING.replace("METHODS", "[leace]").replace(", women: [she, her]", "")
    )
    with pytest.raises(RecipeError, match="there are 1 groups; give two"):
        Suite.load(tmp_path / "one.yaml")


# -- comparisons ------------------------------------------------------------------------------


def test_of_a_bias_the_model_closer_to_the_ideal_is_better():
    rng = np.random.default_rng(6)

    def result(mean, metric):
        values = mean + 0.02 * rng.normal(size=80)
        ids = [str(i) for i in range(80)]
        sample = Sample.of("mean", "query", ids, [[i] for i in ids], {"value": values})
        return Result("t", metric, float(values.mean()), 0.0, sample=sample)

    def better(a, b, metric):
        return compare([result(a, metric)], [result(b, metric)]).tasks[0].better

    assert better(0.1, 0.3, "mean_loss") == "a"
    assert better(-0.3, 0.1, "exposure_gap") == "b"
    assert better(0.45, 0.8, "preference") == "a"
    assert better(0.1, 0.3, "ndcg@10") == "b"

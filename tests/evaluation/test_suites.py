"""Suites, results, the cache and contamination: on known vectors and small files."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

import embedlm
from embedlm.errors import InputError, RecipeError, RecordError
from embedlm.evaluation import evaluate, suites
from embedlm.evaluation.comparison import compare
from embedlm.evaluation.contamination import contamination, grams
from embedlm.evaluation.results import Cache, Result, read_results, write_results
from embedlm.evaluation.sample import Sample
from embedlm.evaluation.suite import Suite, known_tasks
from embedlm.evaluation.tasks import found_tasks, select
from tests.evaluation.known import write

FAST = ["sts", "retrieval", "rerank"]


@pytest.fixture
def folder(tmp_path):
    write(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def model(tiny_llama):
    return embedlm.load(tiny_llama, recipe="plain-mean")


def score(model, folder, tasks=("sts",), **options):
    return evaluate(model, list(tasks), suite=folder / "all.yaml", data=folder, **options)


def test_the_package_s_suites_are_valid():
    assert {"sts", "retrieval", "rerank", "classification", "clustering", "pair", "bitext"} < set(
        suites()
    )
    assert {"code", "quick", "dev", "bias", "robustness", "long", "efficiency"} < set(suites())
    for suite in suites():
        for name, task in Suite.load(suite).items():
            assert task.summary, name
            assert task.licence, name
            assert task.instruction, name
            assert known_tasks()[name] == task, f"{name} means two things"
            assert not any("{" in path for path in task.paths().values())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tasks: {a: {kind: stss}}", "tasks.a: kind is 'stss'; allowed: sts.* Did you mean 'sts'"),
        ("tasks: {a: {kind: sts, files: {pairs: p}, smple: 3}}", "smple: unknown field.*sample"),
        ("tasks: {a: {kind: retrieval, files: {corpus: c}}}", "files.queries"),
        ("tasks: {a: {kind: rerank, files: {queries: q}, metric: ndgc@10}}", "no metric of rank"),
        ("tasks: {a: {use: sts/none}}", "'sts/none' is no task"),
        ("tasks: {}", "tasks"),
        ("task: {}", "task: unknown field"),
    ],
)
def test_a_wrong_suite_is_refused(tmp_path, text, told):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError, match=told):
        Suite.load(tmp_path / "mine.yaml")


def test_unknown_names_are_refused(folder):
    with pytest.raises(InputError, match=r"'stss' is no suite; allowed: .*Did you mean 'sts'"):
        select(None, "stss")
    with pytest.raises(InputError, match=r"no option 'stsx'.* Did you mean 'sts'"):
        select(["stsx"], folder / "all.yaml")


def test_a_missing_file_is_told_or_skipped_by_choice(model, folder):
    (folder / "qrels.jsonl").unlink()
    with pytest.raises(InputError, match=r"retrieval needs .*qrels\.jsonl: the file is not there"):
        score(model, folder, FAST)
    found = score(model, folder, FAST, skip_missing=True)
    assert [result.task for result in found] == ["sts", "rerank"]
    paths, missing = found_tasks(select(None, folder / "all.yaml"), folder, skip_missing=True)
    assert missing == {"retrieval": "qrels.jsonl"}
    assert "retrieval" not in paths
    with pytest.raises(InputError, match="retrieval needs"):
        score(model, folder, ["retrieval"], skip_missing=True)


def test_a_pair_without_a_number_is_told_with_its_record(model, folder):
    (folder / "sts.jsonl").write_text('{"s1": "a", "s2": "b", "score": "high"}\n')
    with pytest.raises(RecordError, match=r"sts\.jsonl:1: 'score' is 'high'"):
        score(model, folder)


TEXTS = ["A man runs.", "Shares fell.", "Oil floats.", "A cat eats."]
UNUSABLE = {
    "sts empty": ("sts", {"pairs": []}, "holds no record"),
    "pair empty": ("pair", {"pairs": []}, "holds no record"),
    "bitext empty": ("bitext", {"pairs": []}, "holds no record"),
    "clusters empty": ("clustering", {"texts": []}, "holds no record"),
    "train empty": (
        "classification", {"train": [], "test": [{"text": "a", "label": 1}]}, "holds no record"
    ),
    "gold is constant": (
        "sts", {"pairs": [{"s1": a, "s2": a, "score": 3} for a in TEXTS]}, "is 3 for every pair"
    ),
    "labels differ": (
        "classification",
        {
            "train": [{"text": a, "label": i % 2} for i, a in enumerate(TEXTS)],
            "test": [{"text": a, "label": "good"} for a in TEXTS],
        },
        "no label .such as 'good'. is one of",
    ),
    "labels are lists": (
        "clustering", {"texts": [{"text": "a", "label": ["x", "y"]}]}, "'label' is .*; give a text"
    ),
    "few draws": (
        "clustering", {"texts": [{"text": a, "label": a} for a in TEXTS]}, "raise draws"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "files", "told"), UNUSABLE.values(), ids=UNUSABLE)
def test_data_that_no_score_can_be_made_of_is_refused(model, tmp_path, kind, files, told):
    for name, rows in files.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    task = {"kind": kind, "files": {name: f"{name}.jsonl" for name in files}}
    more = {"draws": 3, "experiments": 2} if kind == "clustering" else {}
    suite = tmp_path / "suite.yaml"
    suite.write_text(json.dumps({"tasks": {"t": task | more}}))
    with pytest.raises(RecordError, match=told):
        evaluate(model, suite=suite, data=tmp_path)


def test_labels_of_pairs_may_be_true_and_false(model, tmp_path):
    scores = []
    for labels in ((1, 0, 1), (True, False, True)):
        rows = [{"s1": "a", "s2": t, "label": v} for t, v in zip(TEXTS, labels, strict=False)]
        (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        suite = tmp_path / "suite.yaml"
        suite.write_text(
            json.dumps({"tasks": {"t": {"kind": "pair", "files": {"pairs": "p.jsonl"}}}})
        )
        scores.append(evaluate(model, suite=suite, data=tmp_path)[0].score)
    assert scores[0] == scores[1]


def test_a_sample_is_the_same_units_each_time(model, folder):
    text = "tasks: {a: {kind: sts, files: {pairs: sts.jsonl}, sample: 20}}"
    (folder / "few.yaml").write_text(text)
    first, again = (evaluate(model, suite=folder / "few.yaml", data=folder)[0] for _ in range(2))
    assert first.count == 20
    assert first.sample == again.sample


def test_finished_tasks_are_kept_until_something_changes(model, folder):
    cache = folder / "cache"

    def cached(one=model, **options):
        return [result.cached for result in score(one, folder, FAST, cache=cache, **options)]

    assert cached() == [False] * 3
    assert cached() == [True] * 3
    assert cached(restart=True) == [False] * 3
    assert cached(encode={"dim": 8}) == [False] * 3
    assert cached(words=3) == [True, False, True]  # which are only of documents
    other = model.with_recipe(model.recipe.override({"pooling.kind": "last"}))
    assert cached(other) == [False] * 3
    rows = (folder / "sts.jsonl").read_text().splitlines()
    (folder / "sts.jsonl").write_text("\n".join(rows[:-1]) + "\n")
    assert cached() == [False, True, True]
    (damaged := next(cache.glob("*.json"))).write_text("{")
    assert sum(cached()) >= 2
    assert damaged.read_text() != "{" or sum(cached()) == 3


def test_a_cached_result_is_the_same(model, folder):
    first = score(model, folder, FAST, cache=folder / "cache")
    again = score(model, folder, FAST, cache=folder / "cache")
    for one, other in zip(first, again, strict=True):
        assert one.as_dict() == other.as_dict()


def test_a_killed_run_goes_on(run, with_model, folder):
    command = (
        *("evaluate", with_model[1], *with_model[2:], "--suite", folder / "all.yaml"),
        *("--data", folder, "--cache", folder / "cache", "--tasks", ",".join(FAST), "--json"),
    )
    killed = run(*command, kill_at=(str(folder / "cache/*.json"), 1, 0))
    assert killed.code == -9
    done = run(*command)
    assert "sts: kept from an earlier run" in done.err
    assert set(json.loads(done.out)["tasks"]) == set(FAST)


def test_result_files_hold_everything(model, folder):
    results = score(model, folder, FAST)
    hashes = {"sts": {"pairs": "abc"}}
    write_results(
        folder / "r.json", results, {"name": "tiny"}, data=hashes, command=["embedlm", "evaluate"]
    )
    value = json.loads((folder / "r.json").read_text())
    assert value["schema"] == 1
    assert value["command"] == ["embedlm", "evaluate"]
    assert value["seed"] == 42
    assert value["machine"]["embedlm"] == embedlm.__version__
    assert value["details"]["sts"]["data"] == {"pairs": "abc"}
    low, high = value["tasks"]["retrieval"]["interval"]
    assert low <= value["tasks"]["retrieval"]["ndcg@10"] <= high
    assert next(iter(value["tasks"]["retrieval"])) == "ndcg@10"
    kept = read_results(folder / "r.json").results
    assert [one.as_dict() for one in kept] == [one.as_dict() for one in results]
    (folder / "old.json").write_text('{"schema": 0}')
    with pytest.raises(InputError, match="its schema is 0 and 1 is read"):
        read_results(folder / "old.json")


# -- comparisons ------------------------------------------------------------------------------


def result(values, task="t", shared=None, ids=None):
    names = ids or [f"q{i}" for i in range(len(values))]
    texts = [[f"text of {name}"] for name in names]
    sample = Sample.of("mean", "query", names, texts, {"value": values}, shared)
    return Result(task, "ndcg@10", float(np.mean(values)), 0.0, sample=sample)


def test_a_planted_effect_is_found_and_none_is_not():
    rng = np.random.default_rng(1)
    a, noise = rng.uniform(size=200), 0.2 * rng.normal(size=200)
    found = compare(
        [result(a, "same"), result(a, "better")],
        [result(a + noise - noise.mean(), "same"), result(a + noise + 0.1, "better")],
    )
    same, better = found.tasks
    assert (same.better, better.better) == ("", "b")
    assert better.p_holm == pytest.approx(2 * better.p)
    assert better.interval[0] > 0
    assert better.interval[0] <= better.difference <= better.interval[1]
    assert found.verdict == "of 2 tasks, B is better on 1, and 1 not decided (Holm's p up to 0.05)"
    assert found.mean_interval[0] < found.mean < found.mean_interval[1]
    most = better.queries[0]
    assert most["b"] - most["a"] == pytest.approx((noise + 0.1).max())
    assert most["texts"] == [f"text of {most['id']}"]


def test_queries_that_share_documents_count_as_fewer():
    rng = np.random.default_rng(2)
    values = np.repeat(rng.normal(0.05, 0.2, size=25), 8)
    shared = [[f"d{i // 8}"] for i in range(200)]
    zero = np.zeros(200)
    alone = compare([result(zero)], [result(values)]).tasks[0]
    clustered = compare([result(zero, shared=shared)], [result(values, shared=shared)]).tasks[0]
    width = [row.interval[1] - row.interval[0] for row in (alone, clustered)]
    assert width[1] > 2 * width[0]
    assert clustered.test == "sign-flip of clusters"
    assert clustered.p > alone.p
    assert clustered.detectable > 2 * alone.detectable


def test_correlations_and_clusterings_are_compared(model, folder):
    other = model.with_recipe(model.recipe.override({"pooling.kind": "last"}))
    tasks = ["sts", "pair", "clustering"]
    found = compare(score(model, folder, tasks), score(other, folder, tasks))
    assert [row.test for row in found.tasks] == ["swap", "swap", "jackknife z"]
    for row in found.tasks:
        assert row.interval[0] <= row.difference <= row.interval[1]
        assert 0 <= row.p <= row.p_holm <= 1
    same = compare(score(model, folder, tasks), score(model, folder, tasks))
    assert [row.p for row in same.tasks] == [1, 1, 1]
    assert "no difference is sure on 3 tasks" in same.verdict


def test_different_data_are_not_compared():
    with pytest.raises(InputError, match="no task in common"):
        compare([result([1, 0], "a")], [result([1, 0], "b")])
    with pytest.raises(InputError, match="of different data"):
        compare([result([1, 0])], [result([1, 0], ids=["x", "y"])])


# -- contamination ----------------------------------------------------------------------------


def test_grams():
    assert grams("One, two three four!") == ["one two three four"]
    assert grams("one two three") == []
    assert len(grams("a b c d e f g h i j")) == 3
    assert grams("植物は光から食物を") == ["植 物 は 光 か ら 食 物", "物 は 光 か ら 食 物 を"]


def test_contamination_is_told_with_the_score_without(tmp_path):
    long = "the lift of a slender wing grows with the angle of attack"
    texts = [
        [f"{long} in case {i}"] if i < 2 else [f"query of its own number {i}"] for i in range(10)
    ]
    values = [1.0] * 2 + [0.5] * 8
    ids = [str(i) for i in range(10)]
    sample = Sample.of("mean", "query", ids, texts, {"value": values})
    one = Result("t", "ndcg@10", 0.6, 0.0, sample=sample)
    with gzip.open(tmp_path / "train.jsonl.gz", "wt") as file:
        record = {"anchor": "x", "positives": [f"We find that {long.upper()}, in general."]}
        file.write(json.dumps(record) + "\n")
        file.write(json.dumps({"anchor": "Query of its own: number 7"}) + "\n")
    told = contamination([one], Path(tmp_path / "train.jsonl"))["t"]
    assert (told["seen"], told["n"], told["share"]) == (3, 10, 0.3)
    assert told["score_without"] == 0.5


DAMAGE = {
    "a column is missing": lambda sample: sample["columns"].pop("score"),
    "a column is short": lambda sample: sample["columns"].update(score=[1, 2]),
    "a column has words": lambda sample: sample["columns"].update(score=["a"] * 4),
    "a column has nulls": lambda sample: sample["columns"].update(score=[None] * 4),
    "no columns": lambda sample: sample.update(columns=None),
    "no ids": lambda sample: sample.update(ids=[]),
    "no texts": lambda sample: sample.update(texts=None),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_results_are_refused_and_not_taken_from_the_cache(tmp_path, damage):
    columns = {"score": [0.1, 0.2, 0.3, 0.4], "gold": [1, 2, 3, 4]}
    sample = Sample.of("spearman", "pair", list("abcd"), [["x"]] * 4, columns)
    good = Result("sts", "spearman", 0.5, 1.0, interval=(0.1, 0.9), error=0.1, sample=sample)
    write_results(tmp_path / "r.json", [good], {"name": "m"}, data={})
    value = json.loads((tmp_path / "r.json").read_text())
    damage(value["details"]["sts"]["sample"])
    (tmp_path / "r.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match="do not fit together"):
        read_results(tmp_path / "r.json")
    cache = Cache(tmp_path)
    (tmp_path / "key.json").write_text(json.dumps(value["details"]["sts"]))
    assert cache.get("key") is None


def test_tasks_that_cannot_be_compared_are_told_and_the_others_are(tmp_path):
    def result(name, values):
        sample = values and Sample.of("mean", "query", list("abcd"), [["x"]] * 4, {"value": values})
        return Result(name, "ndcg@10", 0.5, 1.0, sample=sample)

    a = [result("one", [1.0] * 4), result("two", None), result("mine", [0.0] * 4)]
    b = [result("one", [1.0] * 4), result("two", None), result("yours", [0.0] * 4)]
    found = compare(a, b)
    assert [row.task for row in found.tasks] == ["one"]
    assert found.tasks[0].interval == (0, 0)  # equal scores: no share of ones
    assert found.as_dict()["left_out"] == {
        "mine": "only one of the two has it",
        "yours": "only one of the two has it",
        "two": "its units are not known",
    }
    with pytest.raises(InputError, match=r"the units .* are not known"):
        compare(a[1:2], b[1:2])

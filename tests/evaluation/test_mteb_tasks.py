"""mteb's tasks: every kind of model, the same classes over local files, and the command."""

import json

import numpy as np
import pytest

pytest.importorskip("mteb")
import mteb
from mteb.mocks import MockRerankingTask, MockRetrievalTask

import embedlm
from embedlm.errors import InputError, RecordError
from embedlm.evaluation import evaluate
from embedlm.evaluation.mteb_models import EmbedLMReranker, EmbedLMSearch, mteb_model
from embedlm.evaluation.mteb_tasks import mteb_results
from embedlm.interop.mteb import EmbedLMEncoder
from tests.evaluation.test_bias import FILES, corpus, write
from tests.evaluation.test_bias import score as suite_score
from tests.rerank.test_rerank import classifier

pytestmark = pytest.mark.filterwarnings("ignore")  # of mteb's own making
HYBRID = {
    "name": "hybrid",
    "prompt": {"default": "{text}"},
    "pooling": {"kind": "mean"},
    "heads": ["dense", {"kind": "sparse", "top_k": 20}],
    "normalize": True,
}


@pytest.fixture(scope="module")
def model(tiny_llama):
    return embedlm.load(tiny_llama, recipe="plain-mean", device="cpu")


@pytest.fixture(scope="module")
def hybrid(tiny_llama):
    return embedlm.load(tiny_llama, recipe=HYBRID, device="cpu")


@pytest.fixture(scope="module")
def reranker(model_folder, tmp_path_factory):
    folder = classifier(model_folder("bert"), tmp_path_factory.mktemp("reranker"))
    return embedlm.Reranker(folder, device="cpu")


def mteb_score(adapter, task):
    (result,) = mteb.evaluate(adapter, [task], cache=None, co2_tracker=False).task_results
    return result.get_score()


def test_the_search_by_the_dense_head_is_that_of_the_encoder(model, hybrid):
    assert type(mteb_model(model)) is EmbedLMEncoder
    assert type(mteb_model(hybrid)) is EmbedLMSearch
    dense = EmbedLMSearch(hybrid, heads=["dense"])
    plain = EmbedLMEncoder(hybrid.with_recipe(hybrid.recipe.override({"heads": ["dense"]})))
    for task in (MockRetrievalTask(), MockRerankingTask()):
        assert mteb_score(dense, task) == pytest.approx(mteb_score(plain, task))
    with pytest.raises(InputError, match=r"no head 'multi_vector'; allowed: dense, sparse"):
        EmbedLMSearch(hybrid, heads=["multi_vector"])


def test_what_searches_is_told_and_part_of_the_revision(hybrid):
    metas = [
        EmbedLMSearch(hybrid, heads=heads).mteb_model_meta
        for heads in (None, ["dense"], ["sparse"])
    ]
    assert [meta.model_type for meta in metas] == [["hybrid"], ["dense"], ["sparse"]]
    assert len({meta.revision for meta in metas}) == 3


def local(folder, name="SciFact"):
    """The small corpus as local files of a task."""
    own = folder / "local" / name
    (own / "qrels").mkdir(parents=True)
    for file in ("corpus.jsonl", "queries.jsonl"):
        (own / file).write_text((folder / file).read_text())
    rows = [json.loads(line) for line in (folder / "qrels.jsonl").read_text().splitlines()]
    lines = [f"{row['q']}\t{row['d']}\t{row['rel']}\n" for row in rows]
    (own / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder / "local"


@pytest.mark.parametrize("heads", [None, ["sparse"]])
def test_local_retrieval_has_the_score_of_our_own_task(hybrid, tmp_path, heads):
    corpus(tmp_path)
    data = local(tmp_path)
    (ours,) = suite_score(hybrid, tmp_path, f"  r: {{kind: retrieval, files: {FILES}}}")
    adapter = EmbedLMSearch(hybrid, heads=heads)
    (result,) = mteb_results(adapter, ["SciFact"], data=data, cache=tmp_path / "cache")
    assert result.metric == "ndcg_at_10"
    name = "hybrid_ndcg@10" if heads is None else "sparse_ndcg@10"
    assert result.score == pytest.approx(ours.more[name], abs=1e-5)
    assert result.count == 10
    assert result.interval[0] <= result.score <= result.interval[1]
    if heads is None:
        np.testing.assert_allclose(
            result.sample.columns["value"], ours.sample.columns["value"], atol=1e-6
        )


def test_a_local_task_is_run_again_when_its_files_change(model, tmp_path):
    pairs = [{"sentence1": f"a {i}", "sentence2": f"b {i % 3}", "score": i % 5} for i in range(30)]
    (tmp_path / "STS12").mkdir()
    write(tmp_path / "STS12", "test.jsonl", pairs)

    def score(**options):
        return evaluate(model, ["STS12"], data=tmp_path, cache=tmp_path / "cache", **options)[0]

    first = score()
    fields = "fields: {first: sentence1, second: sentence2}"
    files = "files: {pairs: STS12/test.jsonl}"
    (ours,) = suite_score(model, tmp_path, f"  s: {{kind: sts, {files}, {fields}}}")
    assert first.score == pytest.approx(ours.score, abs=1e-5)
    assert first.interval == pytest.approx(ours.interval, abs=1e-5)
    kept = sorted((tmp_path / "cache/mteb").rglob("STS12.json"))
    stamp = kept[0].stat().st_mtime_ns
    assert score().score == pytest.approx(first.score, abs=1e-6)  # mteb keeps six digits
    assert kept[0].stat().st_mtime_ns == stamp
    write(tmp_path / "STS12", "test.jsonl", [{**p, "score": -p["score"]} for p in pairs])
    assert score().score == pytest.approx(-first.score, abs=1e-5)
    assert json.loads(kept[0].read_text())["task_name"] == "STS12"  # mteb's own format


def test_what_local_files_lack_is_told(model, tmp_path):
    with pytest.raises(InputError, match=r"STS12' is not there; it must hold the files"):
        evaluate(model, ["STS12"], data=tmp_path)
    (tmp_path / "STS12").mkdir()
    with pytest.raises(InputError, match=r"test\.jsonl is not there"):
        evaluate(model, ["STS12"], data=tmp_path)
    corpus(tmp_path)
    data = local(tmp_path)
    (data / "SciFact/qrels/test.tsv").write_text("query-id\tcorpus-id\nq1\td1\n")
    with pytest.raises(RecordError, match=r"has no 'score'"):
        evaluate(model, ["SciFact"], data=data, cache=tmp_path / "c")
    with pytest.raises(InputError, match="'STS1200' is no task of mteb"):
        evaluate(model, ["STS1200"], data=data)
    with pytest.raises(InputError, match="sts12 and tasks of mteb cannot run in one call"):
        evaluate(model, ["sts12", "STS12"], data=data)
    with pytest.raises(InputError, match=r"words .* has no meaning for tasks of mteb"):
        evaluate(model, ["STS12"], data=data, words=4)


def words(count, seed):
    """Texts of three kinds, of which some read like another kind."""
    rng, kinds = np.random.default_rng(seed), (["plants", "food"], ["fox", "dog"], ["met", "voted"])
    for i in range(count):
        yield " ".join(rng.choice([*kinds[i % 3], "light", "members"], 4)), i % 3


LABELLED = "fields: {text: text, label: label}"
PAIRS = "fields: {first: sentence1, second: sentence2, gold: labels}"
KINDS = {
    "TwitterSemEval2015": (
        {"test": [
            {"sentence1": a, "sentence2": b, "labels": int(i == j)}
            for (a, i), (b, j) in zip(words(40, 0), reversed(list(words(40, 1))), strict=True)
        ]},
        f"{{kind: pair, files: {{pairs: NAME/test.jsonl}}, {PAIRS}}}",
    ),
    "Banking77Classification": (
        {part: [{"text": text, "label": label} for text, label in words(60, seed)]
         for seed, part in enumerate(("train", "test"))},
        "{kind: classification, files: {train: NAME/train.jsonl, test: NAME/test.jsonl}, "
        f"{LABELLED}}}",
    ),
    "VieMedEVBitextMining": (
        {"test": [
            {"sentence1": f"{text} {i}", "sentence2": f"{i} {text}"}
            for i, (text, _) in enumerate(words(40, 0))
        ]},
        "{kind: bitext, files: {pairs: NAME/test.jsonl}, "
        "fields: {first: sentence1, second: sentence2}}",
    ),
    "MedrxivClusteringP2P.v2": (
        {"test": [{"sentences": text, "labels": label} for text, label in words(1500, 0)]},
        "{kind: clustering, documents: 60, files: {texts: NAME/test.jsonl}, "  # its 4 percent
        "fields: {text: sentences, label: labels}}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_scores_have_the_intervals_of_our_own_tasks(model, tmp_path, name):
    files, task = KINDS[name]
    (tmp_path / name).mkdir()
    for file, rows in files.items():
        write(tmp_path / name, f"{file}.jsonl", rows)
    (ours,) = suite_score(model, tmp_path, f"  own: {task.replace('NAME', name)}")
    cache = tmp_path / "cache"
    for _ in range(2):  # the second one is mteb's kept score
        (result,) = evaluate(model, [name], data=tmp_path, cache=cache)
        assert result.count == ours.count > 30
        assert result.interval[0] < result.score < result.interval[1]
        clustering = ours.metric == "v_measure"  # ours assigns all texts, mteb's those it drew
        assert result.interval == pytest.approx(ours.interval, abs=0.02 if clustering else 1e-5)


def test_rerankers_score_pairs(reranker):
    adapter = EmbedLMReranker(reranker)
    pairs = [("food?", "plants make food"), ("light?", "the sun shines")]
    batches = [[{"text": [pair[side] for pair in pairs]}] for side in (0, 1)]
    task = MockRerankingTask()
    scores = adapter.predict(
        *batches, task_metadata=task.metadata, hf_split="test", hf_subset="default"
    )
    np.testing.assert_allclose(scores, reranker.predict(pairs), atol=1e-6)
    assert 0 <= mteb_score(adapter, task) <= 1
    assert adapter.mteb_model_meta.model_type == ["cross-encoder"]
    told = EmbedLMReranker(reranker, instructions={"Reranking": "x"})
    assert told.mteb_model_meta.revision != adapter.mteb_model_meta.revision
    with pytest.raises(InputError, match="which has no dim"):
        mteb_model(reranker, dim=8)


def test_top_ranked_documents_alone_are_ranked(hybrid):
    datasets = pytest.importorskip("datasets")
    rows = [{"id": f"d{i}", "title": "", "text": f"word{i} other"} for i in range(5)]
    queries = datasets.Dataset.from_list([{"id": "q", "text": "word1"}, {"id": "p", "text": "x"}])
    adapter = EmbedLMSearch(hybrid)
    common = {
        "task_metadata": MockRerankingTask().metadata,
        "hf_split": "test",
        "hf_subset": "default",
        "encode_kwargs": {},
        "num_proc": None,
    }
    adapter.index(datasets.Dataset.from_list(rows), **common)
    found = adapter.search(queries, top_k=2, top_ranked={"q": ["d1", "d4"], "p": ["d0"]}, **common)
    assert {query: set(run) for query, run in found.items()} == {"q": {"d1", "d4"}, "p": {"d0"}}
    best = adapter.search(queries, top_k=2, **common)
    assert [len(run) for run in best.values()] == [2, 2]


def test_the_command_prints_mteb_s_scores(run, tiny_llama, tmp_path):
    pairs = [{"sentence1": f"a {i}", "sentence2": f"b {i % 3}", "score": i % 5} for i in range(30)]
    (tmp_path / "STS12").mkdir()
    write(tmp_path / "STS12", "test.jsonl", pairs)
    done = run(
        *("evaluate", tiny_llama, "-r", "plain-mean", "--device", "cpu", "--tasks", "STS12"),
        *("--data", tmp_path, "--cache", tmp_path / "cache", "--json", "-o", tmp_path / "r.json"),
    )
    told = json.loads(done.out)["tasks"]["STS12"]
    assert next(iter(told)) == "cosine_spearman"
    low, high = told["interval"]
    assert low < told["cosine_spearman"] < high
    kept = json.loads((tmp_path / "r.json").read_text())
    assert kept["details"]["STS12"]["notes"]["mteb"]["type"] == "STS"
    assert kept["model"]["revision"]

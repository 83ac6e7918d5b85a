"""The whole run: the better model is kept, kills change nothing, bad input is told in a line."""

import json
import random
import shutil
import sys

import numpy as np
import pytest

import embedlm
from embedlm.adaptation.evaluating import judged
from embedlm.adaptation.settings import Settings
from embedlm.adaptation.tuning import plan_of
from embedlm.cli.adapt import tell_plan
from embedlm.errors import MissingExtraError
from embedlm.evaluation.results import Result
from embedlm.evaluation.sample import Sample
from tests.adaptation.conftest import write_documents
from tests.adaptation.kill import OPTIONS, files_of
from tests.command import server

WORDS = ("-m", "MODEL", *OPTIONS)


@pytest.fixture(scope="module")
def words(tiny_llama):
    """The options of a run that takes seconds."""
    return [tiny_llama if word == "MODEL" else word for word in WORDS]


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    """The documents, output and end of a run that was not stopped."""
    folder = tmp_path_factory.mktemp("finished")
    documents = write_documents(folder / "documents")
    done = server()("adapt", documents, *words, "-o", folder / "out", "--json", folder=folder)
    assert done.code == 0, done.err
    return documents, folder / "out", json.loads(done.out)


def result(values, task="held_out"):
    """Return a result as evaluation gives it."""
    names = [f"q{i}" for i in range(len(values))]
    sample = Sample.of("mean", "query", names, [[name] for name in names], {"value": values})
    return Result(task, "ndcg@10", float(np.mean(values)), 0.0, sample=sample)


@pytest.mark.parametrize(
    ("gain", "kept", "why"),
    [(0.1, "tuned", "is better"), (0.002, "base", "no gain is sure"), (-0.1, "base", "is worse")],
)
def test_the_tuned_model_is_kept_only_where_its_gain_is_sure(gain, kept, why):
    rng = np.random.default_rng(0)
    before = rng.uniform(0.3, 0.6, 200)
    after = before + gain + rng.normal(0, 0.05, 200)
    verdict = judged([result(before)], [result(after)])
    assert verdict.kept == kept
    assert why in verdict.why
    low, high = verdict.held_out.interval
    assert low < gain < high


def test_the_base_is_kept_where_no_step_was_better():
    assert judged([result([0.5, 0.6])], None).kept == "base"


def test_a_long_prompt_leaves_room_for_texts(tmp_path):
    common = {"model": "base", "recipe": None, "teacher": None, "scored": False, "queries": 100}
    common |= {"save_dtype": "float32", "data": tmp_path}
    for prompts, wanted in [((2, 0), (64, 128)), ((80, 100), (112, 164))]:
        sizes = dict(zip(("query", "document"), prompts, strict=True))
        (stage,) = plan_of(Settings(), **common, prompts=sizes)["stages"]
        assert tuple(stage["max_length"].values()) == wanted


def test_a_run_ends_with_the_better_model_and_is_done_once(run, words, finished):
    documents, out, report = finished
    assert report == json.loads((out / "report.json").read_text())
    assert {path.name for path in out.iterdir()} == {
        ".lock", "data", "model", "report.json", "report.md",
    }  # fmt: skip
    assert report["kept"] in ("base", "tuned")
    assert 0 <= report["before"]["ndcg@10"] <= report["after"]["ndcg@10"] <= 1
    held, trained, corpus = (
        [json.loads(line) for line in (out / "data" / name).read_text().splitlines()]
        for name in ("held_out/qrels.jsonl", "train.jsonl", "corpus.jsonl")
    )
    documents_of = {row["_id"]: row["document"] for row in corpus}
    texts_of_unseen = {
        row["text"] for row in corpus if row["document"] in {documents_of[one["d"]] for one in held}
    }
    shown = [text for row in trained for text in (*row["positives"], *row["negatives"])]
    assert not [text for text in shown if any(one in text for one in texts_of_unseen)]
    before = files_of(out)
    again = run("adapt", documents, *words, "-o", out, "--json")
    assert json.loads(again.out) == report
    assert "tuned" not in again.err
    assert files_of(out) == before
    told = run("adapt", documents, *words, "-o", out, "--seed", 5).one_line()
    assert "settings.seed was 0, is 5" in told
    assert "--restart" in told


def test_a_base_that_is_best_is_kept_as_it_is(documents, tiny_llama, tmp_path):
    events = []
    report = embedlm.adapt(
        documents,
        tiny_llama,
        tmp_path / "out",
        recipe="plain-last",
        device="cpu",
        train="all",
        steps=4,
        batch=4,
        negatives=2,
        chunk_tokens=200,
        learning_rate=1e-9,  # too small to change a rank
        filters={"perc_pos": 1},
        on_event=lambda kind, values: events.append((kind, values)),
    )
    assert report["kept"] == "base"
    assert report["after"] == report["before"]
    base, kept = embedlm.load(tiny_llama, "plain-last"), embedlm.load(tmp_path / "out" / "model")
    texts = ["The river meets the bridge.", "A lantern."]
    assert np.array_equal(base.encode(texts), kept.encode(texts))
    assert "dev" in [kind for kind, _ in events]


def test_a_killed_run_ends_in_the_same_files(run, words, finished, tmp_path):
    (documents, whole, _), killed = finished, tmp_path / "killed"
    rng, ends = random.Random(1), []
    for pattern in (
        "work/mined.jsonl.work/vectors-*",
        "work/selected.json",
        "work/tuned/stage-1-adapt/checkpoints/step-*",
        "work/results/*.json",
        "report.md",
    ):
        moment = (str(killed / pattern), 1, rng.uniform(0, 0.05))
        ends.append(run("adapt", documents, *words, "-o", killed, kill_at=moment).code)
    done = run("adapt", documents, *words, "-o", killed)
    assert done.code == 0, done.err
    assert ends.count(-9) >= 3
    assert files_of(killed) == files_of(whole)


def test_a_dry_run_tells_the_plan_and_writes_nothing(run, documents, words, tmp_path, capsys):
    out = tmp_path / "out"
    done = run("adapt", documents, *words, "-o", out, "--dry-run", "--json")
    plan = json.loads(done.out)
    assert plan["documents"] == 12
    assert plan["steps"] == 8
    assert plan["total_seconds"] > 0
    assert set(plan["seconds"]) == {"mine", "tune", "evaluate"}
    assert not out.exists()
    tell_plan(plan)
    assert "12 documents" in (told := capsys.readouterr().out)
    assert "8 steps of training" in told


def test_a_missing_package_is_told_before_documents_are_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r'pip install "embedlm\[train\]"'):
        embedlm.adapt(tmp_path / "not-there", dry_run=True)


def test_queries_of_the_caller_are_used_and_what_cannot_be_read_is_told(
    run, documents, words, tmp_path
):
    (documents / "binary.txt").write_bytes(bytes(range(256)) * 4)
    (documents / "empty.md").write_text("")
    rows = [
        {"query": f"which page is number {i}?", "positives": [f"page{i}.md"]} for i in range(12)
    ]
    rows.append({"query": "which page is lost?", "positives": ["page99.md"]})
    queries = tmp_path / "queries.jsonl"
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [*words, "--filter", "consistency=1000", "--queries", queries]
    done = run("adapt", documents, *options, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert set(report["queries"]["held_out"]) == {"given"}
    assert report["set_aside_counts"] == {"documents": 2, "queries": 1}
    aside = {one["file"]: one["error"] for one in report["set_aside"]["documents"]}
    assert set(aside) == {"binary.txt", "empty.md"}
    assert "UTF-8" in aside["binary.txt"]


REFUSED = {
    "an empty folder": ("holds no file that ends in", []),
    "binary files alone": ("not valid UTF-8", []),
    "one document": ("documents that share no query: 1", []),
    "queries without positives": ("has a positive among the documents", ["--queries", "QUERIES"]),
    "an output of another's": ("holds 'notes.txt', which no run", ["-o", "TAKEN"]),
    "no output": ("no output was given", ["-o", ""]),
    "a teacher that is the model": ("nothing to learn from it", ["--teacher", "MODEL"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_told_in_one_line(run, documents, words, tiny_llama, tmp_path, name):
    told, options = REFUSED[name]
    given = {"MODEL": tiny_llama, "QUERIES": tmp_path / "q.jsonl", "TAKEN": tmp_path / "taken"}
    (tmp_path / "q.jsonl").write_text('{"query": "where?"}\n')
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    if name == "an empty folder":
        shutil.rmtree(documents)
        documents.mkdir()
    for path in sorted(documents.glob("*.md")):
        if name == "binary files alone":
            path.write_bytes(bytes(range(256)))
        elif name == "one document" and path.name != "page0.md":
            path.unlink()
    options = [given.get(one, one) for one in options]
    output = [] if "-o" in options else ["-o", tmp_path / "out"]
    if name == "no output":
        options = []
        output = []
    assert told in run("adapt", documents, *words, *options, *output).one_line()
    assert not (tmp_path / "out" / "model").exists()


def test_a_killed_run_goes_on_after_output_and_model_have_moved(
    run, words, finished, tiny_llama, tmp_path
):
    documents, whole, _ = finished
    first, moved = tmp_path / "first", tmp_path / "moved" / "out"
    model = shutil.copytree(tiny_llama, tmp_path / "here" / tiny_llama.name)
    own = [model if word == tiny_llama else word for word in words]
    checkpoint = str(first / "work/tuned/stage-1-adapt/checkpoints/step-*")
    assert run("adapt", documents, *own, "-o", first, kill_at=(checkpoint, 1, 0)).code == -9
    moved.parent.mkdir()
    shutil.move(first, moved)
    shutil.move(model, tmp_path / tiny_llama.name)
    own = [tmp_path / tiny_llama.name if word == model else word for word in own]
    done = run("adapt", documents, *own, "-o", moved)
    assert done.code == 0, done.err
    assert "step 0: dev" not in done.err  # the checkpoint was taken up
    kept = {name: data for name, data in files_of(moved).items() if not name.startswith("data/")}
    assert kept == {name: data for name, data in files_of(whole).items() if name in kept}


def test_a_base_that_is_kept_is_called_by_its_folder(run, documents, words, tmp_path):
    out = tmp_path / "out"
    gentle = ["0" if word == "0.01" else word for word in map(str, words)]
    gentle[gentle.index("0")] = "1e-9"
    done = run("adapt", documents, *gentle, "-r", "plain-mean", "-o", out)
    assert done.code == 0, done.err
    assert json.loads((out / "report.json").read_text())["kept"] == "base"
    assert "embedlm.load('model')" in (out / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("-o", "IN/adapted"), "lies inside the input"),
        (("-o", "BASE/adapted"), "lies inside the input"),
        (("-o", "FILE/x"), "cannot be made"),
        (("-o", "OUT", "--price", "3"), "price is for dry_run"),
        (("-o", "OUT", "--rank", "4"), "trains no adapter"),
        (("-o", "OUT", "--seed", "-1"), "0 or more"),
        (("-o", "OUT", "--seed", "9" * 30), "too large"),
    ],
)
def test_what_would_be_lost_or_not_used_is_refused(
    run, documents, words, tiny_llama, tmp_path, more, told
):
    (tmp_path / "file").write_text("")
    names = {"IN": documents, "FILE": tmp_path / "file", "OUT": tmp_path / "out"}
    names["BASE"] = tiny_llama
    for name, path in names.items():
        more = tuple(word.replace(name, str(path)) for word in more)
    assert told in run("adapt", documents, *words, *more).one_line()
    assert not (tmp_path / "out").exists()

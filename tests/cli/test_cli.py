"""The commands as a user runs them: what they print, and how they fail."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml

import embedlm
from embedlm.cli import (
    demonstrations,
    encode,
    evaluate,
    parity,
    render,
    search,
    similarity,
)
from embedlm.cli._values import emit
from embedlm.errors import ModelError
from tests.command import sentences

COMMANDS = {
    module.NAME: module
    for module in (demonstrations, encode, evaluate, parity, render, search, similarity)
}


@pytest.fixture(scope="module")
def model(tiny_llama):
    return embedlm.load(tiny_llama, "plain-mean", device="cpu", lm_head=True)


# -- help -----------------------------------------------------------------------------------------


def test_help_starts_without_torch():
    code = (
        "import sys\n"
        "from embedlm.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.decode().splitlines()[-1] == "False False"


@pytest.mark.parametrize("command", [*COMMANDS, "recipes", "recipes show", "recipes schema"])
def test_every_command_has_help_with_examples(run, command):
    done = run(*command.split(), "--help")
    assert (done.code, done.err) == (0, "")
    assert f"Usage: embedlm {command}" in done.out
    assert "Examples:\n" in done.out
    assert f"  embedlm {command.split()[0]}" in done.out.split("Examples:")[1]


def test_the_script_is_installed():
    script = shutil.which("embedlm", path=os.path.dirname(sys.executable))
    assert script is not None
    done = subprocess.run([script, "--version"], capture_output=True, check=True)
    assert done.stdout.decode() == f"{embedlm.__version__}\n"


def test_without_a_command_there_is_help(run):
    done = run()
    assert done.code == 0
    for name in (*COMMANDS, "recipes"):
        assert name in done.out


# -- what commands print --------------------------------------------------------------------------


def test_recipes_lists_all(run):
    done = run("recipes")
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= 80
    names = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert names == embedlm.recipes()
    rows = json.loads(run("recipes", "--json").out)
    assert [row["name"] for row in rows] == names
    assert all(row["summary"] for row in rows)


@pytest.mark.parametrize("name", embedlm.recipes())
def test_a_shown_recipe_can_be_used_again(run, tmp_path, name):
    done = run("recipes", "show", name)
    (tmp_path / "mine.yaml").write_text(done.out)
    assert embedlm.Recipe.load(tmp_path / "mine.yaml") == embedlm.Recipe.load(name)
    shown = json.loads(run("recipes", "show", tmp_path / "mine.yaml", "--json").out)
    assert embedlm.Recipe.load(shown) == embedlm.Recipe.load(name)


def test_the_schema_is_the_recipes_own(run):
    assert json.loads(run("recipes", "schema").out) == embedlm.Recipe.json_schema()


def test_similarity_prints_a_matrix(run, with_model, model):
    texts = ["plants make food", "the quick brown fox", "light"]
    wanted = model.similarity(model.encode(texts), model.encode(texts))
    done = run("similarity", *texts, *with_model)
    assert (done.code, done.err) == (0, "")
    rows = [line.split() for line in done.out.splitlines()[1:]]
    found = [[float(value) for value in row[1:4]] for row in rows]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert [" ".join(row[4:]) for row in rows] == texts
    answer = json.loads(run("similarity", *texts, *with_model, "--json").out)
    assert answer["texts"] == texts
    np.testing.assert_allclose(answer["scores"], wanted, atol=1e-5)


def test_similarity_of_chosen_heads(run, with_model, model):
    heads = ["sparse", "multi_vector"]
    done = run("similarity", "light", "fox", *with_model, "--heads", ",".join(heads), "--json")
    found = model.encode(["light", "fox"], heads=heads)
    np.testing.assert_allclose(
        json.loads(done.out)["scores"], model.similarity(found, found), rtol=1e-4
    )


def test_a_recipe_is_changed_on_the_line(run, tiny_llama, model):
    done = run(
        "similarity", "light", "fox", "-m", tiny_llama, "--set", "pooling.kind=last", "--json"
    )
    last = embedlm.load(tiny_llama, "plain-last", device="cpu")
    vectors = last.encode(["light", "fox"])
    np.testing.assert_allclose(
        json.loads(done.out)["scores"], last.similarity(vectors, vectors), atol=1e-5
    )


def test_texts_may_begin_with_a_hyphen(run, with_model):
    done = run("similarity", *with_model, "--json", "--", "-5 degrees", "freezing")
    assert json.loads(done.out)["texts"] == ["-5 degrees", "freezing"]


def test_render_shows_tokens_and_segments(run, tiny_llama, tmp_path):
    options = ("-m", tiny_llama, "-r", "prompteol")
    done = run("render", "plants make food", *options, "--json")
    (row,) = json.loads(done.out)
    batch = embedlm.load(tiny_llama, "prompteol").render(["plants make food"])
    assert row["ids"] == batch.ids[0]
    assert row["text"] == batch.text[0]
    assert {"text", "literal"} <= set(row["segments"])
    assert len(row["ids"]) == len(row["tokens"]) == len(row["segments"])
    shown = run("render", "plants make food", *options).out
    assert shown.startswith(f"{batch.text[0]}\n\n{len(batch.ids[0])} tokens:\n")
    (tmp_path / "two.yaml").write_text('prompt: {default: ["A {text}", "B {text}"]}')
    options = ("-m", tiny_llama, "-r", tmp_path / "two.yaml", "--json")
    rows = json.loads(run("render", "light", "fox", *options).out)
    assert [row["text"] for row in rows] == ["A light", "B light", "A fox", "B fox"]
    short = run("render", "plants " * 50, "-m", tiny_llama, "--max-length", 9)
    assert "9 tokens, shortened:" in short.out


def test_search_prints_file_and_line(run, with_model, tmp_path):
    (tmp_path / "a.md").write_text("Plants make food.\n\nThe quick brown fox\njumps.\n")
    done = run("search", tmp_path, "The quick brown fox jumps.", *with_model)
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == f"1.0000  {tmp_path}/a.md:3  The quick brown fox jumps."
    rows = json.loads(run("search", tmp_path, "light", *with_model, "--json", "-k", 1).out)
    assert [sorted(row) for row in rows] == [["file", "line", "rank", "score", "text"]]
    for mode in ("sparse", "hybrid", "late-interaction"):
        assert run("search", tmp_path, "light", *with_model, "--mode", mode).code == 0


def test_search_fits_recipes_that_weigh_words(run, tiny_llama, tmp_path):
    (tmp_path / "a.md").write_text("plants plants\n\nplants make\n\nplants fox\n")
    done = run("search", tmp_path, "fox", "-m", tiny_llama, "-r", "static-tfidf")
    assert done.out.splitlines()[0].endswith("a.md:5  plants fox")


@pytest.mark.parametrize("weights", ["none", "sif"])
def test_search_keeps_what_a_model_was_fitted_with(run, tiny_llama, tmp_path, weights):
    texts = ["plants plants", "plants make", "plants fox"]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    pooling = {"kind": "mean", "weights": weights, "remove_components": 1}
    bare = embedlm.load(tiny_llama, {"name": "f", "pooling": pooling}, device="cpu")
    bare.save_pretrained(tmp_path / "bare")
    apart = bare.with_recipe(bare.recipe).fit(sentences(40, seed=1))
    apart.save_pretrained(tmp_path / "apart")
    for name, model in (("bare", bare.fit(texts)), ("apart", apart)):
        done = run("search", tmp_path / "a.txt", "fox", "-m", tmp_path / name, "--json", "-k", 3)
        found = {row["text"]: row["score"] for row in json.loads(done.out)}
        wanted = model.similarity(model.encode_query("fox"), model.encode_document(texts))[0]
        assert [found[text] for text in texts] == pytest.approx(wanted.tolist(), abs=1e-4)


def test_encode_tells_what_it_did(run, with_model, tmp_path, model):
    (tmp_path / "in.jsonl").write_text('{"text": "light"}\n{broken\n{"text": "fox"}\n')
    arguments = ("encode", tmp_path / "in.jsonl", "-o", tmp_path / "out.npy", *with_model)
    assert ":2: not valid JSON" in run(*arguments).one_line()
    done = run(*arguments, "--rejects", tmp_path / "bad.jsonl")
    assert (done.code, done.out) == (0, "")
    assert done.err == (
        f"2 texts x 32 -> {tmp_path}/out.npy, 1 set aside in {tmp_path}/bad.jsonl\n"
    )
    np.testing.assert_allclose(
        np.load(tmp_path / "out.npy"), model.encode(["light", "fox"]), atol=1e-6
    )
    report = json.loads(run(*arguments, "--rejects", tmp_path / "bad.jsonl", "--json").out)
    assert report == {
        "output": f"{tmp_path}/out.npy",
        "rows": 2,
        "rejected": 1,
        "dim": 32,
        "blocks": 1,
        "resumed": 0,
    }


def test_encode_reads_standard_input(run, with_model, tmp_path, model):
    out = tmp_path / "out.npy"
    done = run("encode", "-", "-o", out, *with_model, stdin="light\nfox\n")
    assert done.code == 0, done.err
    np.testing.assert_allclose(np.load(out), model.encode(["light", "fox"]), atol=1e-6)
    line = json.dumps({"body": "fox"}) + "\n"
    options = ("--format", "jsonl", "--text-field", "body")
    assert run("encode", "-", "-o", out, *options, *with_model, stdin=line).code == 0
    np.testing.assert_allclose(np.load(out), model.encode(["fox"]), atol=1e-6)


def test_a_stream_resumes_when_it_is_given_again(run, with_model, tmp_path):
    text = "".join(f"{line}\n" for line in sentences(200))
    out, blocks = tmp_path / "out.npy", f"{tmp_path}/out.npy.part/blocks/*.npz"
    arguments = ("encode", "-", "-o", out, "--block", 20, *with_model)
    assert run(*arguments, stdin=text, kill_at=(blocks, 3, 0)).code == -9
    changed = run(*arguments, stdin="other\n" + text)
    assert "stdin has changed since the job was begun" in changed.one_line()
    done = run(*arguments, "--json", stdin=text)
    assert json.loads(done.out)["resumed"] >= 3
    other = (*arguments[:3], tmp_path / "whole.npy", *arguments[4:])
    assert run(*other, stdin=text).code == 0
    assert out.read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_prompting_options_reach_the_model(run, tiny_llama, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump(
            {
                "prompt": {
                    "default": "{demonstrations}{?instruction}{instruction}: {/instruction}{text}",
                    "query": "q: {text}",
                    "demonstration": "{query} is {response}. ",
                }
            }
        )
    )
    (tmp_path / "shots.jsonl").write_text('{"query": "fox", "response": "brown"}\n')
    options = ("-m", tiny_llama, "-r", tmp_path / "mine.yaml", "--json")
    for given, wanted in (
        ((), "light"),
        (("--instruction", "Find"), "Find: light"),
        (("--role", "query"), "q: light"),
        (("--demonstrations", tmp_path / "shots.jsonl"), "fox is brown. light"),
    ):
        assert json.loads(run("render", "light", *options, *given).out)[0]["text"] == wanted


def test_encode_fits_recipes_that_weigh_words(run, tiny_llama, tmp_path):
    lines = sentences(30)
    (tmp_path / "in.txt").write_text("\n".join(lines))
    options = ("-m", tiny_llama, "-r", "static-sif", "-o", tmp_path / "out.npy")
    done = run("encode", tmp_path / "in.txt", *options, "--fit", tmp_path / "in.txt")
    assert done.code == 0, done.err
    fitted = embedlm.load(tiny_llama, "static-sif").fit(lines)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), fitted.encode(lines), atol=1e-5)


def test_demonstrations_are_scored(run, tiny_llama, tmp_path):
    rows = [{"s1": a, "s2": b, "score": i} for i, (a, b) in enumerate([("a", "b"), ("c", "d")])]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("demonstrations", tiny_llama, "--dev", tmp_path / "dev.jsonl", "--limit", 2)
    found = json.loads(run(*arguments, "--json", "--log", tmp_path / "log.jsonl").out)
    assert len(found) == 3
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 4
    shown = run(*arguments, "-k", 1)
    assert shown.out.count("\n") == 1
    (tmp_path / "dev.jsonl").write_text('{"s1": "a", "score": 1}\n')
    told = run(*arguments).one_line()
    assert "dev.jsonl:1: give the fields s1 and s2" in told


# -- how commands fail ----------------------------------------------------------------------------


def test_demonstrations_are_read_from_yaml(run, tiny_llama, tmp_path):
    shots = [{"query": "a river flows", "response": "river"}]
    options = ("-m", tiny_llama, "-r", "prompteol-icl", "--json")
    (tmp_path / "shots.json").write_text(json.dumps(shots))
    (tmp_path / "shots.yaml").write_text(yaml.safe_dump(shots))
    rows = [
        run("render", "light", *options, "--demonstrations", tmp_path / name).out
        for name in ("shots.json", "shots.yaml")
    ]
    assert "a river flows" in rows[0]
    assert rows[0] == rows[1]
    for text, told in (
        ("- {query: a, query: b}", "stands here twice"),
        ("query: a", "holds no list"),
        ("- [" * 60, "inside each other"),
    ):
        (tmp_path / "shots.yaml").write_text(text)
        done = run("render", "light", *options, "--demonstrations", tmp_path / "shots.yaml")
        assert told in done.one_line()


def test_search_says_what_it_embedded_and_reads_html(run, with_model, tmp_path):
    (tmp_path / "a.md").write_text("Plants make food.\n\nThe fox jumps.\n")
    (tmp_path / "b.html").write_text("<p>The quick <b>brown</b> fox</p><script>no</script>")
    done = run("search", tmp_path, "The quick brown fox", *with_model)
    assert done.out.splitlines()[0] == f"1.0000  {tmp_path}/b.html:1  The quick brown fox"
    assert done.err.startswith("embedded 3 passages of 2 files in ")


def test_an_index_says_so_where_it_finds_nothing(run, with_model, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": 1, "text": "The quick brown fox jumps.", "lang": "en"}\n')
    index = tmp_path / "index"
    assert run("index", corpus, "-o", index, *with_model, "--store", "exact").code == 0
    filtered = run("search", index, "fox", "--where", "lang=de")
    assert (filtered.code, filtered.out) == (0, "")
    assert "nothing found among the documents that --where takes" in filtered.err
    assert "nothing found\n" in run("search", index, "dog", "--mode", "bm25").err
    assert "nothing" not in run("search", index, "fox").err


def test_search_in_parts_finds_the_same(tiny_llama, monkeypatch, model):
    from embedlm.search import Passage, SearchIndex

    passages = [Passage("a", i, text) for i, text in enumerate(sentences(50))]
    whole = SearchIndex(model, passages).search("brown fox", 50)
    monkeypatch.setattr("embedlm.search.index._AT_ONCE", 7)
    parts = SearchIndex(model, passages).search("brown fox", 50)
    assert [hit.passage for hit in parts] == [hit.passage for hit in whole]
    np.testing.assert_allclose(
        [hit.score for hit in parts], [hit.score for hit in whole], atol=1e-5
    )


def test_evaluate_prints_metrics(run, with_model, tmp_path, model):
    pairs = [
        {"s1": a, "s2": b, "score": i}
        for i, (a, b) in enumerate(zip(sentences(8), sentences(8, 1), strict=True))
    ]
    (tmp_path / "sts").mkdir()
    (tmp_path / "sts" / "stsb_dev.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    options = ("--tasks", "stsb_dev", "--data", tmp_path, *with_model[2:])
    done = run("evaluate", with_model[1], *options, "--json")
    (result,) = embedlm.evaluate(model, ["stsb_dev"], data=tmp_path)
    tasks = json.loads(done.out)["tasks"]
    assert tasks.keys() == {"stsb_dev"}
    assert tasks["stsb_dev"]["spearman"] == pytest.approx(result.score, abs=1e-4)
    low, high = tasks["stsb_dev"]["interval"]
    assert low <= tasks["stsb_dev"]["spearman"] <= high
    assert run("evaluate", with_model[1], *options).out.split()[:2] == ["stsb_dev", "spearman"]


def test_compare_two_results(run, with_model, tmp_path):
    pairs = [
        {"s1": a, "s2": b, "score": i}
        for i, (a, b) in enumerate(zip(sentences(9), sentences(9, 1), strict=True))
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    suite = tmp_path / "mine.yaml"
    suite.write_text("tasks: {mine: {kind: sts, files: {pairs: pairs.jsonl}}}")
    shared = ("--suite", suite, "--data", tmp_path, "--cache", "none", *with_model[2:])
    for name, more in (("a", ()), ("b", ("--dim", "4", "--precision", "binary"))):
        output = ("-o", tmp_path / f"{name}.json")
        run("evaluate", with_model[1], *shared, *more, *output)
    files = (tmp_path / "a.json", tmp_path / "b.json")
    found = json.loads(run("compare", *files, "--json").out)["tasks"]["mine"]
    assert found["difference"] == pytest.approx(found["b"] - found["a"])
    assert found["n"] == 9
    assert 0 < found["p"] <= 1
    shown = run("compare", *files).out
    assert "no difference is sure on 1 task" in shown or "is better on 1" in shown
    told = run("compare", *files, "--dim", "4").one_line()
    assert "two result files are compared as they are" in told
    told = run("evaluate", with_model[1], *shared, "-o", "x.txt").one_line()
    assert "end its name in .json" in told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--tasks", "stsb_dv"], "'stsb_dv' is not a task; allowed: .* Did you mean 'stsb_dev'"),
        (["--tasks", ","], "no task was given"),
        (["--data", "nowhere"], "the data folder 'nowhere' is not there"),
    ],
)
def test_evaluate_refuses(run, options, told):
    assert re.search(told, run("evaluate", "builtin", *options).one_line())


def test_json_is_never_nan(capsys):
    for value in (float("nan"), float("inf")):
        with pytest.raises(ModelError, match="NaN or infinity"):
            emit({"scores": [[value]]})
    assert capsys.readouterr().out == ""

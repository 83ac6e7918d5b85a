"""All layers from one pass: equal to the model loaded at each of them, for every architecture."""

import gzip
import json
import logging
import re
from xml.etree import ElementTree

import numpy as np
import pytest

import embedlm
from embedlm.errors import InputError, UnsupportedError
from embedlm.evaluation import evaluate
from embedlm.studies.layer_scores import POOLINGS, readings_of
from embedlm.studies.one_pass import Sweep
from tests import models

TEXTS = [
    "plants make food from sunlight.",
    "fox",
    "",
    "the quick brown fox jumps over the lazy dog " * 4,
    "A committee met on Tuesday",
    "fox",
]
WORDS = ["plants", "food", "light", "fox", "dog", "committee", "members", "glucose", "plan"]


def load(folder, recipe="plain-mean", **options):
    return embedlm.load(folder, recipe, device="cpu", dtype="float32", **options)


def assert_each_is_alone(folder, recipe, readings=None, texts=TEXTS, told=None, **options):
    """Every reading's vectors are those of the model loaded with that layer and pooling."""
    model = load(folder, recipe, **options)
    readings = readings or readings_of(model)
    sweep = Sweep([reading.embedder for reading in readings])
    for number, reading in enumerate(readings):
        alone = load(folder, model.recipe.override(reading.changes), **options)
        np.testing.assert_allclose(
            sweep.vectors(number, texts, **(told or {})),
            alone.encode(texts, heads="dense", **(told or {})),
            rtol=1e-5,
            atol=1e-5,
        )
    return readings


@pytest.mark.parametrize("name", models.ALL)
def test_each_layer_is_the_model_loaded_at_it(model_folder, name):
    folder = model_folder(name)
    model = load(folder)
    poolings = ["mean", "mean-no-sink", "last"] if name in ("llama", "bert") else ["recipe"]
    readings = readings_of(model, poolings=poolings)
    layers = sorted({reading.layer for reading in readings})
    assert layers == list(range(model.backbone.layer_count + 1))
    assert len(readings) == len(layers) * len(poolings)
    assert_each_is_alone(folder, "plain-mean", readings)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("echo", {}),
        ("prompteol-icl", {}),  # a shared prefix
        ("prompteol", {"prompt.default": ["a fox {text} in", "the {text} dog", "{text}"]}),
        ("promptreps", {}),  # two heads, of which the dense one is read
        ("weighted-mean", {"normalize": True, "dim": 8}),
        ("plain-mean", {"pooling.kind": ["mean", "last"], "pooling.layer": [1, -1]}),
        ("plain-mean", {"pooling.exclude_sink": "bos"}),
        ("plain-mean", {"backbone.attention": "bidirectional"}),
        ("prompteol", {"pooling.denoise": True}),
    ],
)
def test_any_recipe(tiny_llama, recipe, changes):
    recipe = embedlm.Recipe.load(recipe).override(changes)
    model = load(tiny_llama, recipe)
    readings = readings_of(model, layers=[0, 2, -1], poolings=["recipe", "mean"])
    assert {reading.layer for reading in readings} == {0, 2, 3}
    assert_each_is_alone(tiny_llama, recipe, readings, told={"role": "query"})


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_padded(tiny_llama, attn):
    assert_each_is_alone(tiny_llama, "plain-mean", attn=attn)


def test_options_reach_the_vectors(tiny_llama):
    told = {"role": "document", "dim": 4, "normalize": True, "max_length": 5, "batch_tokens": 16}
    assert_each_is_alone(tiny_llama, "plain-last", told=told)


def test_a_layer_as_a_share(tiny_llama):
    recipe = embedlm.Recipe.load("plain-last")
    share = load(tiny_llama, recipe.override({"pooling.layer": 0.6})).encode(TEXTS)
    np.testing.assert_array_equal(
        share, load(tiny_llama, recipe.override({"pooling.layer": 2})).encode(TEXTS)
    )
    for wrong in (0.0, 1.0, 1.5, -0.5):
        with pytest.raises(embedlm.errors.RecipeError, match=r"pooling\.layer"):
            recipe.override({"pooling.layer": wrong})


def test_poolings_that_are_the_same_count_once(tiny_llama):
    model = load(tiny_llama)
    readings = readings_of(model, layers=[1])
    assert [reading.pooling for reading in readings] == ["mean", "mean-no-sink", "last"]
    own = readings_of(load(tiny_llama, "weighted-mean"), layers=[1])
    assert [reading.pooling for reading in own] == list(POOLINGS)


def test_no_sink_is_told_of(tiny_llama, caplog):
    with caplog.at_level(logging.WARNING):
        model = load(tiny_llama)
        readings = readings_of(model)
        Sweep([reading.embedder for reading in readings]).vectors(0, TEXTS)
    assert "sink" not in caplog.text


def test_refused(tiny_llama):
    model = load(tiny_llama)
    with pytest.raises(InputError, match="allowed are 0"):
        readings_of(model, layers=[9])
    with pytest.raises(InputError, match=r"no pooling of layers; allowed: recipe"):
        readings_of(model, poolings=["median"])
    with pytest.raises(UnsupportedError, match="runs no layers"):
        readings_of(load(tiny_llama, "static-mean"))
    for field, value in (("weights", "idf"), ("remove_components", 1)):
        fitted = model.with_recipe(model.recipe.override({f"pooling.{field}": value}))
        with pytest.raises(UnsupportedError, match=rf"pooling\.{field}"):
            readings_of(fitted)


# -- scores -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder with a few pairs and a small corpus, in the files of the real sets."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)

    def text(count):
        return " ".join(rng.choice(WORDS, count))

    def write(name, rows):
        target = folder / f"{name}.jsonl.gz"
        target.parent.mkdir(exist_ok=True)
        with gzip.open(target, "wt", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))

    pairs = [{"s1": text(5), "s2": text(5), "score": float(rng.integers(6))} for _ in range(40)]
    write("sts/stsb_dev", pairs)
    write("ir_scifact/corpus", [{"_id": str(i), "title": "", "text": text(9)} for i in range(60)])
    queries = [{"_id": str(i), "text": text(4)} for i in range(20)]
    write("ir_scifact/queries_train", queries)
    write("ir_scifact/qrels_train", [{"q": str(i), "d": str(i), "rel": 1} for i in range(20)])
    return folder


def test_scores_are_those_of_evaluate(run, tiny_llama, data, tmp_path):
    line = ("layers", tiny_llama, "--data", data, "--device", "cpu", "--dtype", "float32")
    more = ("--cache", tmp_path / "cache", "-o", tmp_path / "plot.svg", "--json")
    found = json.loads(run(*line, *more).out)
    assert found["layers"] == 3
    assert set(found["tasks"]) == {"stsb_dev", "scifact_dev"}
    for task, poolings in found["tasks"].items():
        assert set(poolings) == {"mean", "mean-no-sink", "last"}
        for pooling, rows in poolings.items():
            assert [row["layer"] for row in rows] == [0, 1, 2, 3]
            recipe = embedlm.Recipe.load("plain-mean").override(
                {**POOLINGS[pooling], "pooling.layer": 2}
            )
            (alone,) = evaluate(load(tiny_llama, recipe), [task], data=data)
            assert rows[2].pop("layer") == 2
            expected = alone.scores()
            assert rows[2].pop("interval") == pytest.approx(expected.pop("interval"), abs=1e-6)
            assert rows[2] == pytest.approx(expected, abs=1e-6)
    for task, top in found["recommended"].items():
        metric = "spearman" if task == "stsb_dev" else "ndcg@10"
        scores = [row[metric] for rows in found["tasks"][task].values() for row in rows]
        assert top[metric] == max(scores)
    drawn = ElementTree.parse(tmp_path / "plot.svg").getroot()
    text = ElementTree.tostring(drawn, encoding="unicode")
    assert len(re.findall("polyline", text)) == 6
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    # A second run finds everything finished, and prints the same.
    again = run(*line, *more)
    assert json.loads(again.out) == json.loads(run(*line, *more).out)


def test_the_table(run, tiny_llama, data):
    line = ("layers", tiny_llama, "--data", data, "--device", "cpu", "--cache", "none")
    out = run(*line, "--tasks", "stsb_dev", "--pooling", "last,mean", "--layers", "1,-1").out
    assert re.search(r"^stsb_dev, spearman, 40 units\nlayer  last +mean$", out, re.MULTILINE)
    assert re.findall(r"^ +(\d) ", out, re.MULTILINE) == ["1", "3"]
    told = re.search(r"^stsb_dev: layer \d by \w+, ([-.\d]+); (.*)$", out, re.MULTILINE)
    assert told is not None
    changes = told[2].split()
    scored = run(
        *("evaluate", tiny_llama, "--data", data, "--device", "cpu", "--cache", "none"),
        *("--tasks", "stsb_dev", "-r", "plain-mean", *changes),
    ).out
    assert float(told[1]) == pytest.approx(float(scored.split()[2]), abs=6e-4)


def test_a_part_of_the_corpus_is_searched(data, tiny_llama):
    model = load(tiny_llama)
    suite = data / "part.yaml"
    task = "{use: dev/scifact_dev, sample: null, documents: %d}"
    suite.write_text(f"tasks: {{few: {task % 25}, all: {task % 60}}}")
    few, every = evaluate(model, suite=suite, data=data)
    assert few.score > every.score
    assert few.count == every.count == 20


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("-o", "plot.png"), r"another ending than \.svg; end its name in \.svg"),
        (("-o", "nowhere/plot.svg"), "is not there; make it first"),
        (("--layers", "a"), "write whole numbers"),
        (("--layers", "7"), "allowed are 0"),
        (("--pooling", "median"), "is no pooling"),
        (("--choose", "banking77"), "none of the tasks"),
        (("-r", "static-mean"), "runs no layers"),
    ],
)
def test_bad_input(run, tiny_llama, data, options, told):
    line = ("layers", tiny_llama, "--data", data, "--device", "cpu", "--cache", "none")
    failed = run(*line, *options)
    assert failed.code == 2
    assert re.search(told, failed.one_line())

"""Studies: designs, variants as their parts would be by hand, power laws, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.decomposition import PCA

import embedlm
from embedlm.errors import InputError, RecipeError
from embedlm.evaluation import evaluate
from embedlm.evaluation.kinds import score_task
from embedlm.evaluation.subject import Subject
from embedlm.evaluation.suite import parsed_tasks
from embedlm.studies.design import Study, studies, variants
from embedlm.studies.fits import fit_power_law, power_law
from embedlm.studies.reduction import reduced
from embedlm.studies.study import _verdict, run_study
from tests.evaluation.known import Known, vector, write

TASKS = {
    "sts": {"kind": "sts", "files": {"pairs": "sts.jsonl"}},
    "find": {
        "kind": "retrieval",
        "files": {"corpus": "corpus.jsonl", "queries": "queries.jsonl", "qrels": "qrels.jsonl"},
    },
}
POOLING = {"field": "pooling.kind", "values": ["last", "mean"]}


def design(**fields):
    fields = {"name": "mine", "tasks": TASKS, "recipe": "plain-mean", **fields}
    return Study.model_validate({"factors": {"pooling": POOLING}, **fields})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("data")
    write(target)
    return target


@pytest.mark.parametrize("name", studies())
def test_the_package_s_studies_are_valid(name):
    study = Study.load(name)
    assert study.question
    assert study.claim
    labels = [variant.label for variant in variants(study)]
    assert len(labels) == len(set(labels)) > 1


def test_one_factor_varies_at_a_time_and_a_grid_has_all():
    factors = {
        "pooling": POOLING,
        "dim": {"option": "dim", "values": [32, 16, 8]},
    }
    one = list(variants(design(factors=factors, baseline={"dim": "16"})))
    assert [v.label for v in one] == ["last, 16", "pooling: mean", "dim: 32", "dim: 8"]
    assert one[0].settings.encode == {"dim": 16}
    assert one[1].settings.change == {"pooling.kind": "mean"}
    grid = list(variants(design(factors=factors, design="grid")))
    assert len({v.label for v in grid}) == 6
    assert grid[0].label == "last, 32"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"factors": {"a": POOLING, "b": POOLING}}, "'a' and 'b' both set change.pooling.kind"),
        ({"factors": {"a": {"field": "x", "value": 3}}}, "factors.a"),
        ({"baseline": {"pooling": "max"}}, "'max' is no level"),
        ({"within": "pooling"}, "within names a factor of a grid"),
        ({"suite": "sts"}, "a suite or tasks"),
        ({"factors": {"a": {"x": {"encode": {"dims": 3}}}}}, "no option 'dims'.*'dim'"),
        ({"factors": {"a": {"x": {"reduce": {"kind": "pca", "dim": 3}}}}}, "pca needs texts"),
        ({"poolings": 3}, "poolings: unknown field"),
    ],
)
def test_a_design_that_is_wrong_is_refused(fields, told, tmp_path):
    path = tmp_path / "mine.yaml"
    whole = {"tasks": TASKS, "factors": {"pooling": POOLING}, **fields}
    path.write_text(json.dumps(whole))
    with pytest.raises(RecipeError, match=told):
        Study.load(path)


def test_a_variant_is_what_its_recipe_gives_by_hand(tiny_llama, folder, tmp_path):
    study = design(
        factors={
            "pooling": {
                **{kind: {"change": {"pooling.kind": kind}} for kind in ("last", "mean")},
                "bidirectional": {"change": {"backbone.attention": "bidirectional"}},
                "short": {"encode": {"dim": 8, "precision": "binary"}},
                "bytes": {"encode": {"precision": "int8"}, "calibration": {"file": "t.jsonl"}},
            }
        }
    )
    cache = tmp_path / "cache"
    texts = [f"a committee met {i} times" for i in range(120)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "t.jsonl").write_text(lines)
    report = run_study(study, str(tiny_llama), data=folder, cache=cache)
    assert [o.variant.label for o in report.outcomes] == [
        *("last", "mean", "bidirectional", "short", "bytes")
    ]
    suite = tmp_path / "suite.yaml"
    suite.write_text(json.dumps({"tasks": TASKS}))
    by_hand = [
        ({"pooling.kind": "last"}, {}),
        ({}, {}),
        ({"backbone.attention": "bidirectional"}, {}),
        ({}, {"dim": 8, "precision": "binary"}),
        ({}, {"precision": "int8"}),
    ]
    for outcome, (change, options) in zip(report.outcomes, by_hand, strict=True):
        recipe = embedlm.Recipe.load("plain-mean").override(change)
        model = embedlm.load(tiny_llama, recipe)
        if options.get("precision") == "int8":
            model.fit_ranges(texts)
        expected = evaluate(model, suite=suite, data=folder, encode=options)
        assert [r.score for r in outcome.results] == [r.score for r in expected]
    assert report.outcomes[0].facts["bytes"] == 128
    assert report.outcomes[3].facts["bytes"] == 1
    assert report.outcomes[4].facts["bytes"] == 32
    again = run_study(study, str(tiny_llama), data=folder, cache=cache)
    assert all(result.cached for outcome in again.outcomes for result in outcome.results)
    assert again.as_dict()["comparisons"] == report.as_dict()["comparisons"]
    json.dumps(report.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    "factors",
    [
        {"layer": {"field": "pooling.layer", "values": [-1, 1, -2]}},
        {"layer": {"field": "pooling.layer", "values": [-1, 1]}, "pooling": POOLING},
        {
            "form": {
                "all": {},
                "short": {"encode": {"dim": 8, "precision": "binary"}},
                "turned": {"reduce": {"kind": "random", "dim": 16}},
            }
        },
    ],
)
def test_variants_that_read_the_same_states_share_a_pass(
    tiny_llama, folder, tmp_path, monkeypatch, factors
):
    seen = []
    gather = embedlm.Embedder.gather

    def counted(self, readout, parts, call):
        seen.append(len(parts))
        return gather(self, readout, parts, call)

    monkeypatch.setattr(embedlm.Embedder, "gather", counted)
    suite = tmp_path / "suite.yaml"
    suite.write_text(json.dumps({"tasks": TASKS}))
    evaluate(embedlm.load(tiny_llama, "plain-mean"), suite=suite, data=folder)
    once = sum(seen)
    seen.clear()
    study = design(factors=factors, design="grid")
    report = run_study(study, str(tiny_llama), data=folder)
    # Each variant also encodes one text, to tell the bytes of a vector.
    assert sum(count for count in seen if count > 1) == once
    assert [o.variant.label for o in report.outcomes] == [v.label for v in variants(study)]
    assert len({outcome.mean for outcome in report.outcomes}) == len(report.outcomes)
    for outcome in report.outcomes:
        settings = outcome.variant.settings
        model = embedlm.load(
            tiny_llama, embedlm.Recipe.load("plain-mean").override(settings.change)
        )
        if settings.reduce is not None:
            model = reduced(model, "random", 16)
        expected = evaluate(model, suite=suite, data=folder, encode=settings.encode)
        scores = [result.score for result in outcome.results]
        assert scores == pytest.approx([result.score for result in expected], abs=1e-6)


def test_a_factor_is_compared_within_the_others(tiny_llama, folder):
    study = design(
        design="grid",
        within="pooling",
        factors={"mask": {"field": "backbone.attention", "values": ["causal", "bidirectional"]},
                 "pooling": POOLING},
    )  # fmt: skip
    report = run_study(study, str(tiny_llama), data=folder)
    assert [(v.against, v.label) for v in report.versus] == [
        ("causal, last", "causal, mean"),
        ("bidirectional, last", "bidirectional, mean"),
    ]
    scores = {o.variant.label: o.mean for o in report.outcomes}
    for versus in report.versus:
        expected = scores[versus.label] - scores[versus.against]
        assert versus.mean == pytest.approx(expected)


def test_a_trained_variant_is_trained_once(tiny_llama, folder, tmp_path):
    plan = {
        "recipe": "plain-mean",
        "stages": [
            {
                "name": "few",
                "objective": [{"kind": "cosent"}],
                "data": [{"source": "sts.jsonl"}],
                "batching": {"size": 8},
                "optimizer": {"steps": 2, "learning_rate": 0.01},
            }
        ],
    }
    levels = {"no": {}, "two": {"train": {}}, "four": {"train": {"stages.few.optimizer.steps": 4}}}
    study = design(train=plan, factors={"steps": levels})
    work = tmp_path / "work"
    report = run_study(study, str(tiny_llama), data=folder, work=work)
    scores = [tuple(r.score for r in outcome.results) for outcome in report.outcomes]
    assert len(set(scores)) == 3
    trained = sorted(path.stat().st_mtime_ns for path in work.rglob("model.safetensors"))
    again = run_study(study, str(tiny_llama), data=folder, work=work)
    assert [tuple(r.score for r in o.results) for o in again.outcomes] == scores
    assert sorted(p.stat().st_mtime_ns for p in work.rglob("model.safetensors")) == trained


def test_demonstrations_are_refused_by_a_recipe_that_takes_none(tiny_llama, folder):
    study = design(factors={"k": {"none": {}, "two": {"demonstrations": {"count": 2}}}})
    with pytest.raises(InputError, match="takes none; take prompteol-icl"):
        run_study(study, str(tiny_llama), data=folder)


def test_demonstrations_are_in_the_prompt(tiny_llama, folder):
    levels = {str(k): {"demonstrations": {"count": k}} for k in (0, 1, 3)}
    study = design(recipe="prompteol-icl", factors={"k": levels})
    report = run_study(study, str(tiny_llama), data=folder)
    assert len({outcome.mean for outcome in report.outcomes}) == 3


# -- reductions -------------------------------------------------------------------------------


def test_principal_components_are_scikit_learn_s(tiny_llama, tmp_path):
    model = embedlm.load(tiny_llama, recipe="plain-mean")
    texts = [f"plants make food {i} of light {i * i}" for i in range(40)]
    small = reduced(model, "pca", 6, texts)
    assert small.dim == 6
    fitted = PCA(6, svd_solver="full").fit(model.encode(texts))
    other = ["the committee met", "a dog runs"]
    ours, theirs = small.encode(other), fitted.transform(model.encode(other))
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=2e-4)
    small.save_pretrained(tmp_path / "small")
    np.testing.assert_allclose(embedlm.load(tmp_path / "small").encode(other), ours, atol=1e-5)
    assert model.encode(other).shape == (2, 32)


def test_a_rotation_that_is_not_cut_keeps_similarities(tiny_llama):
    model = embedlm.load(tiny_llama, recipe="plain-mean")
    texts = ["the committee met", "a dog runs", "plants make food"]
    turned = reduced(model, "random", 32)
    before, after = (m.similarity(*[m.encode(texts)] * 2) for m in (model, turned))
    np.testing.assert_allclose(before, after, atol=1e-4)
    with pytest.raises(InputError, match="have 32 numbers and cannot be reduced to 64"):
        reduced(model, "random", 64)


# -- power laws and contrast ------------------------------------------------------------------


def test_a_planted_power_law_is_found():
    x = np.array([1e3, 4e3, 16e3, 64e3, 256e3])
    y = 30 * x**-0.4 + 0.25
    c, exponent, floor = power_law(x, y)
    assert exponent == pytest.approx(0.4, abs=0.03)
    assert floor == pytest.approx(0.25, abs=0.02)
    np.testing.assert_allclose(c * x**-exponent + floor, y, rtol=0.01)
    rng = np.random.default_rng(0)
    drawn = [value * np.exp(0.02 * rng.standard_normal(400)) for value in y]
    law = fit_power_law(x, y, drawn, factor="data", task="t", x_is="level", loss="l")
    low, high = law.exponent_interval
    assert low < 0.4 < high
    for ends in zip(law.low, law.middle, law.high, strict=True):
        assert ends[0] <= ends[1] * 1.05
        assert ends[1] <= ends[2] * 1.05
    assert law.r2 > 0.99


def test_a_law_needs_three_sizes():
    drawn = [np.ones(10)] * 2
    with pytest.raises(InputError, match="needs 3 levels"):
        fit_power_law([1, 2], [1, 2], drawn, factor="f", task="t", x_is="level", loss="l")


def test_contrastive_entropy_is_that_of_a_softmax(tmp_path):
    rows = [{"q": f"topic{i % 5} q {i}", "d": f"topic{i % 5} d {i}"} for i in range(30)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"kind": "contrast", "files": {"pairs": "p.jsonl"}, "temperature": 0.5}
    (task,) = parsed_tasks({"a": {**fields, "negatives": 29}}, "x").values()
    scored = score_task(Subject(Known()), task, {"pairs": tmp_path / "p.jsonl"})
    q, d = (np.stack([vector(row[key]) for row in rows]) for key in "qd")
    expected = np.diag(log_softmax(q @ d.T / 0.5, axis=1))  # all others are negatives
    np.testing.assert_allclose(scored.sample.arrays["value"], expected, atol=1e-6)
    assert scored.metrics["contrastive_entropy"] == pytest.approx(-expected.mean())


# -- the command ------------------------------------------------------------------------------


def test_the_command_s_dry_run_and_refusals(run, tmp_path):
    done = run("study", "pooling", "--dry-run")
    assert "baseline  last" in done.out
    assert "stsb_dev, scifact_small" in done.out
    assert "'poolin' is no study" in run("study", "poolin").one_line()
    assert "no study was given" in run("study").one_line()
    assert "is not there" in run("study", "pooling", "--data", tmp_path / "none").one_line()


def test_nats_and_other_scores_have_no_mean(tiny_llama, folder):
    report = run_study(design(factors={"pooling": POOLING}), str(tiny_llama), data=folder)
    metric = "contrastive_log_likelihood"
    mixed = [
        replace(o, results=[o.results[0], replace(o.results[1], metric=metric)])
        for o in report.outcomes
    ]
    assert _verdict(report.outcomes, report.versus)[0].startswith("Best: ")
    lines = _verdict(mixed, report.versus)
    assert "no common scale (contrastive_log_likelihood, " in lines[0]
    assert "[" not in " ".join(lines[1:-1])

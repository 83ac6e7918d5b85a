"""A projection started by ridge regression: the closed form, its bad input, kill and resume."""

import itertools
import json

import numpy as np
import pytest

import embedlm
from embedlm.errors import InputError, JobError
from embedlm.training import starts, train
from embedlm.training.merging import merge
from embedlm.training.ridge import Moments, solve
from tests.command import sentences

STRENGTHS = (1e-6, 1e-3, 1e-1)


def test_the_sums_give_the_regression_of_all_texts():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 12)).astype(np.float32) + 3
    y = (x @ rng.normal(size=(12, 5)) + 2 + rng.normal(size=(400, 5))).astype(np.float32)
    fitted, held_out = Moments.zero(12, 5), Moments.zero(12, 5)
    for start in range(0, 300, 64):
        fitted.add(x[start : min(start + 64, 300)], y[start : min(start + 64, 300)])
    held_out.add(x[300:], y[300:])
    found = solve(fitted, held_out, STRENGTHS, bias=True)
    centred, target = x - x.mean(0), y - y.mean(0)
    strength = found.strength * len(x) * np.mean(centred.var(0))
    expected = np.linalg.solve(
        centred.T @ centred + strength * np.eye(12), centred.T.astype(np.float64) @ target
    )
    np.testing.assert_allclose(found.weight_IO, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.bias_O, y.mean(0) - x.mean(0) @ expected, atol=1e-3)
    residual = y[300:] - x[300:] @ found.weight_IO - found.bias_O
    near = 1 - np.square(residual).sum() / np.square(y[300:] - y[300:].mean(0)).sum()
    assert found.explained == pytest.approx(near, abs=0.01)
    error = held_out.error(found.weight_IO, found.bias_O)
    assert error == pytest.approx(np.square(residual).sum(), rel=1e-6)


def test_noise_asks_for_strength():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(60, 40)), rng.normal(size=(60, 3))
    fitted, held_out = Moments.zero(40, 3), Moments.zero(40, 3)
    fitted.add(x[:45].astype(np.float32), y[:45].astype(np.float32))
    held_out.add(x[45:].astype(np.float32), y[45:].astype(np.float32))
    assert solve(fitted, held_out, (1e-8, 10.0), bias=True).strength == 10.0


@pytest.fixture
def plan(model_folder, tmp_path):
    """Return the fields of a plan that starts a projection, and lie its data beside it."""
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in sentences(90)))
    teacher = embedlm.load(model_folder("bert"), recipe="plain-mean")
    width = teacher.dim
    teacher.save_pretrained(tmp_path / "teacher")
    heads = [{"dense": {"projection": {"width": width, "init": "ridge"}}}]
    return {
        "model": str(model_folder("llama")),
        "recipe": "plain-mean",
        "change": {"heads": heads},
        "ridge": {"teacher": str(tmp_path / "teacher"), "data": [{"source": "texts.txt"}]},
    }


def distilling(plan, tmp_path, **stage):
    loss = {
        "kind": "embedding_distill",
        "options": {"teacher": str(tmp_path / "teacher"), "metric": "cosine"},
    }
    own = {
        "name": "distil",
        "objective": [loss],
        "data": [{"source": "texts.txt"}],
        "batching": {"size": 16},
        "optimizer": {"steps": 3, "learning_rate": 1e-3},
    }
    return {**plan, "stages": [{**own, **stage}]}


def test_ridge_alone_beats_a_rotation(plan, tmp_path):
    model = train(plan, tmp_path / "out", data=tmp_path)
    texts = sentences(90)
    target = embedlm.load(tmp_path / "teacher").encode(texts)
    start = embedlm.load(
        plan["model"], recipe=model.recipe.override({"heads.dense.projection.init": "orthogonal"})
    )
    own, random = ((m.encode(texts) * target).sum(1).mean() for m in (model, start))
    assert own > random + 0.2
    summary = json.loads((tmp_path / "out" / "stage-0-ridge" / "summary.json").read_text())
    assert summary["texts"] == len(dict.fromkeys(texts))
    assert 0 < summary["held_out"] < summary["texts"]


@pytest.mark.parametrize("which", ["heads", "all"])
def test_stages_go_on_from_it(plan, tmp_path, which):
    ridge = train(plan, tmp_path / "ridge", data=tmp_path)
    tuned = train(distilling(plan, tmp_path, train=which), tmp_path / "out", data=tmp_path)
    own, before = (m.readout.parts.projection.parts()[0].linear for m in (tuned, ridge))
    assert not np.array_equal(own.weight, before.weight)
    np.testing.assert_allclose(own.weight, before.weight, atol=0.02)
    network = [next(iter(m.backbone.network.parameters())).numpy() for m in (tuned, ridge)]
    assert np.array_equal(*network) == (which == "heads")


def test_a_projection_that_is_there_is_not_started_again(plan, tmp_path):
    train(plan, tmp_path / "out", data=tmp_path)
    trained = str(tmp_path / "out" / "model")
    with pytest.raises(InputError, match="has a projection already"):
        train({**plan, "model": trained}, tmp_path / "more", data=tmp_path)
    fields = distilling({**plan, "model": trained}, tmp_path)
    del fields["ridge"]
    train(fields, tmp_path / "more", data=tmp_path)
    assert not (tmp_path / "more" / "stage-0-ridge").exists()


def test_chunks_and_smaller_widths_train_it_alike(plan, tmp_path):
    plan["change"]["heads"][0]["dense"]["projection"]["init"] = "orthogonal"
    del plan["ridge"]
    stage = distilling(plan, tmp_path)["stages"][0]
    loss = {**stage["objective"][0], "options": {**stage["objective"][0]["options"]}}
    pair = {"kind": "info_nce", "matryoshka": [8]}
    groups = [{"query": a, "pos": b} for a, b in itertools.pairwise(sentences(40))]
    (tmp_path / "groups.jsonl").write_text("".join(json.dumps(g) + "\n" for g in groups))
    own = {"objective": [loss, pair], "data": [{"source": "groups.jsonl"}]}
    found = []
    for name, chunk in (("whole", None), ("chunks", 64)):
        batching = {"size": 8, "chunk_tokens": chunk, "group_size": 1}
        fields = distilling(plan, tmp_path, batching=batching, **own)
        found.append(train(fields, tmp_path / name, data=tmp_path))
    first, second = (m.readout.parts.projection.parts()[0].linear.weight for m in found)
    np.testing.assert_allclose(first, second, atol=1e-4)
    both = merge([tmp_path / "whole" / "model", tmp_path / "chunks" / "model"], tmp_path / "both")
    mean = both.readout.parts.projection.parts()[0].linear.weight
    np.testing.assert_allclose(mean, (first + second) / 2, atol=1e-6)


def test_killed_it_resumes_with_the_same_weights(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(starts, "BLOCK", 16)
    monkeypatch.setattr(starts, "SAVED_EVERY", 0.0)
    whole = train(plan, tmp_path / "whole", data=tmp_path)

    def kill(kind, values):
        if kind == "start" and values["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(plan, tmp_path / "out", data=tmp_path, on_event=kill)
    steps = []
    resumed = train(
        plan,
        tmp_path / "out",
        data=tmp_path,
        on_event=lambda k, v: steps.append((k, v.get("step"))),
    )
    assert ("start", 1) not in steps
    own, other = (m.readout.parts.projection.parts()[0].linear.weight for m in (resumed, whole))
    assert np.array_equal(own, other)
    later = []
    train(plan, tmp_path / "out", data=tmp_path, on_event=lambda k, v: later.append(k))
    assert later == ["resume"]
    plan["ridge"]["held_out"] = 0.3
    with pytest.raises(JobError, match="another plan"):
        train(plan, tmp_path / "out", data=tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"nothing"])
def test_a_damaged_cache_of_the_teachers_vectors(plan, tmp_path, content):
    train(plan, tmp_path / "out", data=tmp_path)
    files = list((tmp_path / "out" / "teacher-vectors").glob("*.npy"))
    assert len(files) == 1
    before = files[0].read_bytes()
    files[0].write_bytes(content)
    with pytest.raises(JobError, match="empty or damaged"):
        train(plan, tmp_path / "out", data=tmp_path, restart=True)
    files[0].unlink()
    train(plan, tmp_path / "out", data=tmp_path, restart=True)
    assert files[0].read_bytes() == before


def test_a_teacher_of_another_width_is_refused_unloaded(plan, tmp_path):
    (tmp_path / "teacher" / "model.safetensors").write_bytes(b"no weights")
    plan["change"]["heads"][0]["dense"]["projection"]["width"] = 7
    with pytest.raises(InputError, match="of 7; give the student a projection"):
        train(plan, tmp_path / "out", data=tmp_path)
    bare = distilling({k: plan[k] for k in ("model", "recipe")}, tmp_path)
    bare["recipe"] = {"name": "wide", "pooling": {"kind": ["mean", "max"]}}
    with pytest.raises(InputError, match="stage 'distil': embedding_distill compares vectors"):
        train(bare, tmp_path / "out", data=tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"ridge": None}, "name the model: ridge"),
        ({"change": {}}, "no projection that starts so"),
        ({"ridge": {"teacher": "teacher"}}, "there are no texts"),
        (
            {"ridge": {"teacher": "teacher", "data": [{"source": "texts.txt", "weight": 2}]}},
            "weight says nothing",
        ),
        (
            {"ridge": {"teacher": "teacher", "data": [{"source": "none.txt"}]}},
            "'none.txt' is not there",
        ),
        (
            {"ridge": {"teacher": "teacher", "data": [{"source": "texts.txt", "max_records": 2}]}},
            "give more texts",
        ),
    ],
)
def test_bad_starts(plan, tmp_path, change, told):
    fields = {**plan, **change}
    if fields["ridge"] is None:
        fields = distilling({**plan, "ridge": {}}, tmp_path)
        fields["stages"][0]["objective"] = [{"kind": "uniformity"}]
    with pytest.raises(InputError, match=told):
        train(fields, tmp_path / "out", data=tmp_path)

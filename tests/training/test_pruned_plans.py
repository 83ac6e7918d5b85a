"""A plan that cuts its model, starts a projection, trains and saves in int8; and its bad input."""

import json

import pytest
from safetensors.torch import load_file

import embedlm
from embedlm.cli.train import event_line
from embedlm.errors import InputError, JobError, UnsupportedError
from embedlm.training import train
from tests.command import sentences


@pytest.fixture
def plan(model_folder, tmp_path):
    """Return the fields of a plan that cuts the model, and lie its data beside it."""
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in sentences(90)))
    teacher = embedlm.load(model_folder("bert"), recipe="plain-mean")
    teacher.save_pretrained(tmp_path / "teacher")
    heads = [{"dense": {"projection": {"width": teacher.dim, "init": "ridge"}}}]
    loss = {"kind": "embedding_distill", "options": {"teacher": str(tmp_path / "teacher")}}
    stage = {
        "name": "distil",
        "objective": [loss],
        "data": [{"source": "texts.txt"}],
        "batching": {"size": 16},
        "optimizer": {"steps": 2},
    }
    return {
        "model": str(model_folder("llama")),
        "recipe": "plain-mean",
        "change": {"heads": heads},
        "prune": {"layers": 2, "vocabulary": 300, "intermediate": 16},
        "save_dtype": "int8",
        "stages": [stage],
    }


def test_cut_started_trained_and_stored(plan, tmp_path):
    model = train(plan, tmp_path / "out", data=tmp_path)
    assert model.backbone.layer_count == 2
    assert len(model.tokenizer) == 300
    stored = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert stored["embed_tokens.weight_scale"].shape == (300,)
    summary = json.loads((tmp_path / "out" / "stage-0-prune" / "summary.json").read_text())
    assert summary["layers"][1] == 2
    assert summary["intermediate"] == [48, 16]
    assert model.backbone.text_config.intermediate_size == 16
    events = []
    train(plan, tmp_path / "out", data=tmp_path, on_event=lambda k, v: events.append((k, v)))
    assert [kind for kind, _ in events] == ["resume"] * 3
    for field, told in (("layers", "2, is 1"), ("intermediate", "16, is 1")):
        changed = {**plan, "prune": plan["prune"] | {field: 1}}
        with pytest.raises(JobError, match=rf"prune\.{field} was {told}"):
            train(changed, tmp_path / "out", data=tmp_path)


def test_neurons_alone_are_measured_on_the_plans_own_texts(plan, tmp_path):
    bare = {"model": plan["model"], "prune": {"intermediate": 8}}
    with pytest.raises(InputError, match="there are no texts"):
        train(bare, tmp_path / "out")
    bare["prune"]["data"] = [{"source": "texts.txt", "max_records": 20}]
    events = []
    model = train(
        bare, tmp_path / "out", data=tmp_path, on_event=lambda k, v: events.append((k, v))
    )
    assert model.backbone.text_config.intermediate_size == 8
    (values,) = [values for kind, values in events if kind == "prune"]
    assert "intermediate 8, " in event_line("prune", values)


def test_a_plan_may_cut_and_do_no_more(plan, tmp_path):
    bare = {"model": plan["model"], "prune": {"layers": 1}, "save_dtype": "bfloat16"}
    model = train(bare, tmp_path / "out")
    assert model.backbone.layer_count == 1
    config = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("prune", "error", "told"),
    [
        ({}, InputError, "nothing is to be cut"),
        ({"layers": 44}, InputError, "44 layers were asked for"),
        ({"intermediate": 49}, InputError, "49 neurons a layer"),
        ({"vocabulary": 20}, InputError, "must stay"),
        ({"layers": 1, "data": [{"source": "texts.txt"}]}, InputError, "give one of them"),
        ({"vocabulary": 300, "data": [{"source": "none.txt"}]}, InputError, "is not there"),
        ({"intermediate": 9, "data": [{"source": "none.txt"}]}, InputError, "is not there"),
        (
            {"vocabulary": 300, "data": [{"source": "texts.txt", "instruction": "x"}]},
            InputError,
            "instruction says nothing",
        ),
    ],
)
def test_bad_cuts(plan, tmp_path, prune, error, told):
    with pytest.raises(error, match=told):
        train({**plan, "prune": prune}, tmp_path / "out", data=tmp_path)


def test_an_architecture_that_cannot_be_cut(plan, model_folder, tmp_path):
    with pytest.raises(UnsupportedError, match="cannot be cut"):
        train({**plan, "model": str(model_folder("gpt2"))}, tmp_path / "out", data=tmp_path)

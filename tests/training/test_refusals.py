"""What a run says of itself, and what it refuses before the first step."""

import json
import shutil
import sys

import pytest
import torch
import yaml

import embedlm
from embedlm.errors import InputError, JobError, MissingExtraError
from embedlm.jobs.interrupts import kept
from embedlm.jobs.lock import locked
from embedlm.training import train
from tests.training.test_runs import a_plan, data, stop_at  # noqa: F401


def write(folder, name, records):
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_plan_without_a_recipe_takes_that_of_its_models_folder(tiny_llama, data, tmp_path):  # noqa: F811
    folder = tmp_path / "saved"
    recipe = embedlm.Recipe.load("plain-last").override({"prompt.default": "say {text}"})
    embedlm.load(tiny_llama, recipe, device="cpu").save_pretrained(folder)
    plan = a_plan(folder, ("info_nce", {"optimizer": {"steps": 1}}))
    del plan["recipe"]
    model = train(plan, tmp_path / "out", data=data, device="cpu")
    assert model.recipe.pooling.kind == "last"
    assert model.recipe.prompt.default == "say {text}"
    changed = {**plan, "change": {"normalize": False}}
    model = train(changed, tmp_path / "changed", data=data, device="cpu")
    assert (model.recipe.pooling.kind, model.recipe.normalize) == ("last", False)
    named = train({**plan, "recipe": "plain-mean"}, tmp_path / "named", data=data, device="cpu")
    assert named.recipe.pooling.kind == "mean"


@pytest.mark.parametrize(
    ("settings", "package", "extra"),
    [({}, "peft", "train"), ({"adapter": {"kind": "qlora"}}, "bitsandbytes", "qlora")],
)
def test_a_missing_package_is_told_before_an_earlier_stage_trains(
    tiny_llama,
    data,  # noqa: F811
    tmp_path,
    monkeypatch,
    settings,
    package,
    extra,
):
    monkeypatch.setitem(sys.modules, package, None)
    later = {"train": "adapter", "optimizer": {"steps": 1}, **settings}
    plan = a_plan(tiny_llama, ("info_nce", {"optimizer": {"steps": 1}}), ("info_nce", later))
    with pytest.raises(MissingExtraError, match=rf'pip install "embedlm\[{extra}\]"'):
        train(plan, tmp_path / "out", data=data, device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_saved_projection_is_trained(tiny_llama, data, tmp_path):  # noqa: F811
    """Without a recipe of its own, a plan reads all layers of its model's folder."""
    folder = tmp_path / "projected"
    embedlm.load(tiny_llama, "plain-mean", device="cpu").save_pretrained(folder)
    modules = json.loads((folder / "modules.json").read_text())
    from safetensors.torch import save_file

    width = embedlm.load(folder, device="cpu").dim
    dense = folder / "9_Dense"
    dense.mkdir()
    settings = {
        "in_features": width,
        "out_features": 8,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    (dense / "config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    save_file({"linear.weight": torch.randn(8, width)}, dense / "model.safetensors")
    entry = {"path": "9_Dense", "type": "sentence_transformers.models.Dense"}
    pooling = next(i for i, module in enumerate(modules) if "Pooling" in module["type"])
    modules.insert(pooling + 1, {"idx": 9, "name": "9", **entry})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "embedlm.yaml").unlink()
    before = embedlm.load(folder, device="cpu")
    assert before.dim == 8
    plan = a_plan(folder, ("info_nce", {"optimizer": {"steps": 2, "learning_rate": 1e-2}}))
    del plan["recipe"]
    model = train(plan, tmp_path / "out", data=data, device="cpu")
    assert model.dim == 8


CANNOT = [
    ("info_nce", {"data": [{"source": "bare.jsonl", "in_batch_negatives": False}]}, "no negatives"),
    ("info_nce", {"data": [{"source": "bare.jsonl"}], "batching": {"size": 1}}, "no negatives"),
    ("late_interaction", {"data": [{"source": "bare.jsonl"}], "batching": {"size": 1}}, "no negat"),
    ("simcse", {"batching": {"size": 1}}, "no negatives"),
    ("kl_distill", {"batching": {"size": 8, "group_size": 1}}, "each query has one"),
    ("cosent", {"data": [{"source": "equal.jsonl"}]}, "all pairs have the score 0.5"),
    ("uniformity", {"batching": {"size": 1}}, "it compares texts"),
    (
        "info_nce",
        {"objective": [{"kind": "info_nce", "options": {"head": "multi_vector"}}]},
        "cannot read the head 'multi_vector'; allowed: dense, sparse",
    ),
]


@pytest.mark.parametrize(("objective", "more", "message"), CANNOT)
def test_an_objective_that_cannot_learn_is_refused(
    tiny_llama,
    data,  # noqa: F811
    tmp_path,
    objective,
    more,
    message,
):
    write(data, "bare.jsonl", [{"query": f"q {i}", "pos": [f"p {i}"]} for i in range(9)])
    pairs = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": 0.5} for i in range(9)]
    write(data, "equal.jsonl", pairs)
    with pytest.raises(InputError, match=message):
        train(a_plan(tiny_llama, (objective, more)), tmp_path, data=data, device="cpu")
    assert not list(tmp_path.glob("stage-*"))


@pytest.mark.parametrize(
    ("length", "more", "told"),
    [
        (6, {}, "stage 'info_nce-2': role query: the prompt alone takes"),
        ({"query": 30, "document": 2}, {}, "role document: the prompt alone takes"),
        (14, {"data": [{"source": "groups.jsonl", "instruction": "search " * 20}]}, "role query"),
    ],
)
def test_a_prompt_without_room_is_told_before_an_earlier_stage_trains(
    tiny_llama,
    data,  # noqa: F811
    tmp_path,
    length,
    more,
    told,
):
    change = {"prompt.query": "Task: {instruction} query: {text}", "prompt.document": "doc: {text}"}
    stages = [("info_nce", {}), ("info_nce", {"name": "info_nce-2", "max_length": length, **more})]
    plan = a_plan(tiny_llama, *stages, change=change)
    plan["stages"][0]["name"] = "first"
    with pytest.raises(InputError, match=told):
        train(plan, tmp_path, data=data, device="cpu")
    assert not list(tmp_path.glob("stage-*"))


def test_a_prompt_without_room_is_told_where_the_network_has_a_folder_of_its_own(
    tiny_llama,
    data,  # noqa: F811
    tmp_path,
):
    model, first = tmp_path / "model", "0_Transformer"
    shutil.copytree(tiny_llama, model / first)
    entry = {"idx": 0, "name": "0", "path": first, "type": "sentence_transformers.models."}
    entries = [{**entry, "type": f"{entry['type']}Transformer"}]
    entries.append({"idx": 1, "name": "1", "path": "", "type": f"{entry['type']}Normalize"})
    (model / "modules.json").write_text(json.dumps(entries))
    change = {"prompt.query": "Task: {instruction} query: {text}", "prompt.document": "{text}"}
    stages = [("info_nce", {}), ("info_nce", {"name": "second", "max_length": 6})]
    with pytest.raises(InputError, match="role query: the prompt alone takes"):
        train(a_plan(model, *stages, change=change), tmp_path / "out", data=data, device="cpu")
    assert not list(tmp_path.glob("out/stage-*"))


def test_a_group_size_that_changes_nothing_is_told(tiny_llama, data, tmp_path, caplog):  # noqa: F811
    write(data, "bare.jsonl", [{"query": f"q {i}", "pos": [f"p {i}"]} for i in range(9)])
    stage = {"data": [{"source": "bare.jsonl"}], "optimizer": {"steps": 1}}
    for size, times in ((1, 0), (None, 0), (4, 1)):
        batching = {"size": 4} if size is None else {"size": 4, "group_size": size}
        plan = a_plan(tiny_llama, ("info_nce", {**stage, "batching": batching}))
        train(plan, tmp_path / str(size), data=data, device="cpu")
        assert caplog.text.count("group_size 4 changes nothing") == times


def test_an_adapter_above_the_pooled_layer_is_refused(tiny_llama, data, tmp_path):  # noqa: F811
    stage = {"train": "adapter", "adapter": {"rank": 2}}
    plan = a_plan(tiny_llama, ("info_nce", stage), change={"pooling.layer": 0})
    with pytest.raises(InputError, match=r"cannot learn: the vectors .* pools layer 0"):
        train(plan, tmp_path, data=data, device="cpu")
    heads = a_plan(tiny_llama, ("info_nce", {}), change={"pooling.layer": 9})
    with pytest.raises(InputError, match="layer 9"):
        train(heads, tmp_path / "b", data=data, device="cpu")
    assert not list(tmp_path.glob("**/step-*"))


def test_a_language_objective_without_a_head_is_refused(model_folder, data, tmp_path):  # noqa: F811
    folder = tmp_path / "headless"
    embedlm.load(model_folder("llama"), "plain-mean", device="cpu").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    if "CausalLM" in str(config.get("architectures")):
        pytest.skip("the saved model keeps its head")
    with pytest.raises(embedlm.errors.EmbedLMError, match="head"):
        train(a_plan(folder, ("ntp", {})), tmp_path / "out", data=data, device="cpu")


def test_a_run_says_from_which_step_it_resumes(tiny_llama, data, tmp_path, monkeypatch):  # noqa: F811
    plan = a_plan(tiny_llama, ("info_nce", {}), ("info_nce", {}), checkpoint_every=3)
    events = []
    with monkeypatch.context() as patch:
        stop_at(5, patch)
        with pytest.raises(KeyboardInterrupt) as stopped:
            train(plan, tmp_path, data=data, device="cpu", on_event=lambda *e: events.append(e))
    assert "resume" not in [kind for kind, _ in events]
    assert kept(stopped.value)
    train(plan, tmp_path, data=data, device="cpu", on_event=lambda *e: events.append(e))
    resumed = [values for kind, values in events if kind == "resume"]
    assert resumed == [{"stage": "s0", "step": 3, "of": 12}]
    events.clear()
    train(plan, tmp_path, data=data, device="cpu", on_event=lambda *e: events.append(e))
    assert [values["stage"] for _, values in events] == ["s0", "s1"]
    assert all(values["finished"] for _, values in events)


def test_a_score_on_a_part_of_the_dev_set_is_called_that(tiny_llama, data, tmp_path):  # noqa: F811
    stage = ("info_nce", {"optimizer": {"steps": 1}})
    for limit, metric in ((150, "spearman (first 150 records)"), (180, "spearman")):
        events = []
        train(
            a_plan(tiny_llama, stage, dev={"every": 1, "max_records": limit}),
            tmp_path / str(limit),
            data=data,
            device="cpu",
            on_event=lambda *e, events=events: events.append(e),
        )
        assert {values["metric"] for kind, values in events if kind == "dev"} == {metric}


def test_two_runs_never_share_an_output_folder(tiny_llama, data, tmp_path):  # noqa: F811
    plan = a_plan(tiny_llama, ("info_nce", {"optimizer": {"steps": 1}}))
    tmp_path.joinpath("out").mkdir()
    with (
        locked(tmp_path / "out" / ".lock"),
        pytest.raises(JobError, match="another process"),
    ):
        train(plan, tmp_path / "out", data=data, device="cpu", restart=True)
    train(plan, tmp_path / "out", data=data, device="cpu")


def test_a_folder_that_was_not_trained_in_is_left_alone(tiny_llama, data, tmp_path):  # noqa: F811
    mine = tmp_path / "out" / "model"
    mine.mkdir(parents=True)
    (mine / "config.json").write_text("mine")
    plan = a_plan(tiny_llama, ("info_nce", {"optimizer": {"steps": 1}}))
    for restart in (False, True):
        with pytest.raises(InputError, match="holds 'model', which no training run has written"):
            train(plan, tmp_path / "out", data=data, device="cpu", restart=restart)
    assert (mine / "config.json").read_text() == "mine"


@pytest.mark.parametrize("restart", [False, True])
def test_what_is_read_is_never_overwritten(tiny_llama, data, tmp_path, restart):  # noqa: F811
    stage = ("info_nce", {"optimizer": {"steps": 1}, "name": "first"})
    out = tmp_path / "out"
    train(a_plan(tiny_llama, stage), out, data=data, device="cpu")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = ("info_nce", {"optimizer": {"steps": 1}, "name": "second"})
    for base in (out / "model", next(out.glob("stage-1-*")) / "model"):
        with pytest.raises(InputError, match=r"is an input, too|holds the input"):
            train(a_plan(base, other), out, data=data, device="cpu", restart=restart)
    loss = {"kind": "embedding_distill", "options": {"teacher": str(out / "model")}}
    taught = ("embedding_distill", {**other[1], "objective": [loss]})
    with pytest.raises(InputError, match="is an input, too"):
        train(a_plan(tiny_llama, taught), out, data=data, device="cpu", restart=restart)
    with pytest.raises(InputError, match="lies inside the input"):
        train(a_plan(out / "model", other), out / "model" / "in", data=data, device="cpu")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_the_tiny_scale_says_which_model_it_trains(run, tiny_llama, data, tmp_path):  # noqa: F811
    file = tmp_path / "plan.yaml"
    stage = ("info_nce", {"optimizer": {"steps": 1}})
    file.write_text(yaml.safe_dump(a_plan("no-such-model", stage)))
    options = ("--data", data, "--device", "cpu", "--scale", "tiny")
    own = run("train", file, "-o", tmp_path / "own", "-m", tiny_llama, *options)
    assert own.code == 0, own.err
    assert f"training the model {tiny_llama}" in own.err
    builtin = run("train", file, "-o", tmp_path / "builtin", *options)
    assert builtin.code == 0, builtin.err
    assert "training the built-in base model" in builtin.err

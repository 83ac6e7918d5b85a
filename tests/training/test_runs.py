"""Whole runs: what they leave, kill and resume, early stopping, and clean refusals."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import embedlm
from embedlm.errors import InputError, JobError, RecipeError
from embedlm.training import train
from embedlm.training.schedule import learning_rate
from tests.command import sentences

WORDS = ("river water boat", "engine repair wheel", "music theory piano", "trade grain market")


def topical(count, seed):
    """Return texts of four topics with the topic of each: what a model can learn."""
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        topic = index % len(WORDS)
        own, other = WORDS[topic].split(), ["the", "a", "of", "and", "in", "on", "by"]
        rows.append((topic, " ".join(rng.sample(own, 2) + rng.sample(other, 3))))
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a folder of small data sets of every kind."""
    folder = tmp_path_factory.mktemp("data")
    rows = topical(160, 0)
    groups = [
        {
            "query": text,
            "pos": [rows[i + 4][1]],
            "neg": [rows[i + 5][1]],
            "pos_scores": [2.0],
            "neg_scores": [-1.0],
        }
        for i, (_, text) in enumerate(rows[:-5])
    ]
    pairs = [
        {"sentence1": a[1], "sentence2": b[1], "score": float(a[0] == b[0])}
        for a, b in zip(topical(120, 1), topical(121, 2)[1:] * 1, strict=True)
    ]
    pairs += [
        {"sentence1": a[1], "sentence2": b[1], "score": 1.0}
        for a, b in zip(topical(60, 3), topical(60, 4), strict=True)
    ]
    for name, records in {"groups": groups, "pairs": pairs}.items():
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text)
    (folder / "texts.txt").write_text("".join(f"{text}\n" for text in sentences(80)))
    return folder


def a_plan(model, *stages, dev=None, **fields):
    """Return a plan's fields; a stage is its objective and what it has beside the usual."""
    sources = {"info_nce": "groups.jsonl", "kl_distill": "groups.jsonl", "cosent": "pairs.jsonl"}
    made = []
    for number, (objective, more) in enumerate(stages):
        made.append(
            {
                "name": f"s{number}",
                "objective": [{"kind": objective}],
                "data": [{"source": sources.get(objective, "texts.txt")}],
                "batching": {"size": 16},
                "optimizer": {"steps": 12, "learning_rate": 3e-3},
                **more,
            }
        )
    plan = {"model": str(model), "stages": made, "recipe": "plain-mean", **fields}
    return {**plan, "dev": {"source": "pairs.jsonl", **dev}} if dev is not None else plan


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_a_tuned_model_is_better_and_opens_again(tiny_llama, data, tmp_path):
    seen = []
    plan = a_plan(
        tiny_llama,
        ("mntp", {"attention": "bidirectional"}),
        ("info_nce", {"attention": "bidirectional"}),
        dev={"every": 4},
        change={"backbone.attention": "bidirectional"},
    )
    model = train(
        plan, tmp_path / "out", data=data, device="cpu", on_event=lambda *a: seen.append(a)
    )
    scores = [v["score"] for kind, v in seen if kind == "dev" and v["stage"] == "s1"]
    assert max(scores) > scores[0] + 0.1
    again = embedlm.load(tmp_path / "out" / "model", device="cpu")
    assert again.recipe.backbone.attention == "bidirectional"
    np.testing.assert_array_equal(again.encode(["music"]), model.encode(["music"]))
    summary = json.loads((tmp_path / "out" / "stage-2-s1" / "summary.json").read_text())
    assert summary["best_score"] == max(scores)
    log = [json.loads(x) for x in (tmp_path / "out/stage-2-s1/log.jsonl").read_text().splitlines()]
    assert {"step", "dev"} == {line["kind"] for line in log}


def test_the_best_weights_are_kept_and_patience_ends_a_stage(tiny_llama, data, tmp_path):
    stage = ("info_nce", {"optimizer": {"steps": 60, "learning_rate": 0.3, "schedule": "constant"}})
    plan = a_plan(tiny_llama, stage, dev={"every": 2, "patience": 3})
    model = train(plan, tmp_path, data=data, device="cpu")
    summary = json.loads((tmp_path / "stage-1-s0" / "summary.json").read_text())
    assert summary["steps"] < 60
    from embedlm.data import read_records
    from embedlm.training.dev import dev_score

    found = dev_score(model, read_records(data / "pairs.jsonl"))
    assert found == pytest.approx(summary["best_score"], abs=1e-6)


ADAPTER = {"train": "adapter", "adapter": {"rank": 4, "dropout": 0.1}}


def test_a_run_killed_at_random_moments_gives_the_same_weights(run, tiny_llama, data, tmp_path):
    plan = a_plan(
        tiny_llama,
        ("info_nce", {"dropout": 0.1, "batching": {"size": 16, "chunk_tokens": 64}}),
        ("cosent", ADAPTER),
        dev={"every": 5},
        checkpoint_every=2,
    )
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(plan))
    options = ("--data", data, "--device", "cpu")
    assert run("train", file, "-o", tmp_path / "whole", *options).code == 0
    killed, rng = tmp_path / "killed", random.Random(0)
    for pattern in ("stage-1-*/checkpoints/step-*", "stage-1-*/checkpoints/step-8", "stage-2-*"):
        moment = (str(killed / pattern), 1, rng.uniform(0, 0.1))
        assert run("train", file, "-o", killed, *options, kill_at=moment).code == -9
        assert not (killed / "model").exists()
    done = run("train", file, "-o", killed, *options)
    assert done.code == 0, done.err
    ours, theirs = weights(killed / "model"), weights(tmp_path / "whole" / "model")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    summary = json.loads((killed / "stage-1-s0" / "summary.json").read_text())
    assert summary["best_score"] > summary["dev"][0]["score"] + 0.05


def test_without_an_output_the_plan_names_it(tiny_llama, data, tmp_path, monkeypatch):
    from embedlm.cli.train import command

    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(a_plan(tiny_llama, ("info_nce", {}))))
    monkeypatch.chdir(tmp_path)
    command("mine.yaml", data=str(data), device="cpu")
    assert (tmp_path / "tuned" / "mine" / "model" / "config.json").is_file()


def test_the_seed_decides(tiny_llama, data, tmp_path):
    plan = a_plan(tiny_llama, ("info_nce", {"dropout": 0.1}))
    found = [
        weights_of(train({**plan, "seed": seed}, tmp_path / str(number), data=data, device="cpu"))
        for number, seed in enumerate((0, 0, 1))
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def weights_of(model):
    return model.backbone.network.layers[0].mlp.up_proj.weight


def test_a_checkpoint_of_another_plan_is_refused(tiny_llama, data, tmp_path, monkeypatch):
    plan = a_plan(tiny_llama, ("info_nce", {}), checkpoint_every=3)
    with monkeypatch.context() as patch:
        stop_at(5, patch)
        with pytest.raises(KeyboardInterrupt):
            train(plan, tmp_path, data=data, device="cpu")
    other = a_plan(tiny_llama, ("info_nce", {"batching": {"size": 8}}), checkpoint_every=3)
    with pytest.raises(JobError, match="another plan"):
        train(other, tmp_path, data=data, device="cpu")
    train(other, tmp_path, data=data, device="cpu", restart=True)


@pytest.mark.parametrize("change", ["objective", "rate", "data", "dev", "recipe"])
def test_a_finished_run_of_another_plan_is_refused(tiny_llama, data, tmp_path, change):
    mine = shutil.copytree(data, tmp_path / "data")
    few = {"optimizer": {"steps": 2, "learning_rate": 1e-3}}
    plan = a_plan(tiny_llama, ("cosent", few), dev={"every": 1})
    events = []
    run = {"data": mine, "device": "cpu", "on_event": lambda kind, values: events.append(kind)}
    train(plan, tmp_path / "out", **run)
    events.clear()
    train(plan, tmp_path / "out", **run)
    assert "resume" in events
    assert "step" not in events
    if change == "objective":
        plan["stages"][0]["objective"] = [{"kind": "angle"}]
    elif change == "rate":
        plan["stages"][0]["optimizer"] = {"steps": 2, "learning_rate": 2e-3}
    elif change == "recipe":
        plan["recipe"] = "weighted-mean"
    else:
        name = "pairs.jsonl"
        rows = (mine / name).read_text().splitlines()
        rows[50] = rows[51]
        if change == "dev":
            name = "other.jsonl"
            plan["dev"]["source"] = name
        (mine / name).write_text("\n".join(rows))
    with pytest.raises(JobError, match="another plan or from other data"):
        train(plan, tmp_path / "out", **run)
    train(plan, tmp_path / "out", restart=True, **run)


def stop_at(step, patch):
    """Let a run end when it requests for that step's batch."""
    from embedlm.training.batches import Batches

    own = Batches.next

    def stopping(self):
        if self.step == step:
            raise KeyboardInterrupt
        return own(self)

    patch.setattr(Batches, "next", stopping)


@pytest.mark.parametrize("rate", [1e30, 1e37])
def test_divergence_stops_and_keeps_the_last_good_checkpoint(tiny_llama, data, tmp_path, rate):
    wild = {"optimizer": {"steps": 40, "learning_rate": rate, "max_grad_norm": None}}
    plan = a_plan(tiny_llama, ("info_nce", wild), checkpoint_every=1)
    with pytest.raises(JobError, match=r"diverged at step .*smaller learning rate"):
        train(plan, tmp_path, data=data, device="cpu")
    kept = list((tmp_path / "stage-1-s0" / "checkpoints").glob("step-*"))
    assert kept
    assert not (tmp_path / "model").exists()


def test_too_little_memory_is_told_before_the_first_step(tiny_llama, data, tmp_path, monkeypatch):
    monkeypatch.setattr("embedlm.training.loop.free_memory", lambda device: 1000)
    plan = a_plan(tiny_llama, ("info_nce", {}))
    with pytest.raises(JobError, match=r"for gradients and the optimiser .*train: adapter"):
        train(plan, tmp_path, data=data, device="cpu")
    assert not list(tmp_path.glob("stage-1-s0/checkpoints/*"))


def test_running_out_of_memory_keeps_the_last_checkpoint(tiny_llama, data, tmp_path, monkeypatch):
    from embedlm.training.trainable import TrainableEmbedder

    own, calls = TrainableEmbedder.plan_chunks, []

    def plan_of(self, requests):
        calls.append(1)
        if len(calls) == 6:  # the first call is the check before the first step
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(self, requests)

    plan = a_plan(tiny_llama, ("info_nce", {}), checkpoint_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(TrainableEmbedder, "plan_chunks", plan_of)
        with pytest.raises(JobError, match=r"out of memory at step 5; .*step 4.*chunk_tokens"):
            train(plan, tmp_path, data=data, device="cpu")
    train(plan, tmp_path, data=data, device="cpu")  # goes on


def test_several_teachers_are_one_with_their_mean_scores(tiny_llama, model_folder, data, tmp_path):
    from embedlm.training.batches import BatchRow
    from embedlm.training.teachers import EmbeddingTeacher, TeacherPanel

    folders = [str(tiny_llama), str(model_folder("qwen3"))]
    guides = [
        EmbeddingTeacher(embedlm.load(folder, "plain-mean", device="cpu")) for folder in folders
    ]
    rows = [
        BatchRow(0, "a river", ("water", "an engine")),
        BatchRow(0, "music", ("piano", "trade")),
    ]
    mean = sum(guide.scores(rows) for guide in guides) / 2
    torch.testing.assert_close(TeacherPanel(guides).scores(rows), mean)
    records = [
        {"query": "a river", "pos": ["water"], "neg": ["trade"]},
        {"query": "music", "pos": ["piano"], "neg": ["wheel"]},
    ]
    (data / "bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    loss = {"kind": "kl_distill", "options": {"teachers": folders}}
    stage = {"objective": [loss], "data": [{"source": "bare.jsonl"}], "optimizer": {"steps": 2}}
    train(a_plan(tiny_llama, ("kl_distill", stage)), tmp_path, data=data, device="cpu")


def test_a_full_disk_is_told(run, tiny_llama, data, tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(a_plan(tiny_llama, ("info_nce", {}))))
    told = run(
        "train", file, "-o", tmp_path / "out", "--data", data, "--device", "cpu",
        largest_file=20_000,
    )  # fmt: skip
    assert told.code == 2
    assert "cannot be written" in told.err
    assert "Traceback" not in told.err


def refused(plan, data, tmp_path, **options):
    return train(plan, tmp_path / "out", data=data, device="cpu", **options)


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        ({"stages": []}, RecipeError, "stages"),
        ({"modle": "x"}, RecipeError, "modle"),
        ({"stages": [{"name": "a", "objective": [{"kind": "info_nce"}]}]}, InputError, "no data"),
        ({"recipe": "metaeol"}, embedlm.errors.UnsupportedError, "several prompts"),
        ({"dev": {"source": "texts.txt"}}, InputError, "bare texts"),
        ({"dev": {"source": "nothing.jsonl"}}, InputError, "nothing.jsonl"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_the_first_step(
    tiny_llama, data, tmp_path, change, kind, told
):
    plan = {**a_plan(tiny_llama, ("info_nce", {})), **change}
    with pytest.raises(kind, match=told):
        refused(plan, data, tmp_path)
    assert not list(tmp_path.glob("out/stage-1-*/checkpoints/step-*"))


@pytest.mark.parametrize(
    ("objective", "source", "told"),
    [
        ("cosent", "groups.jsonl", "two texts and their score"),
        ("info_nce", "pairs.jsonl", "a query with its positive"),
        ("simcse", "pairs.jsonl", "bare texts"),
        ("embedding_distill", "texts.txt", "options: {teacher"),
        ("infonce", "groups.jsonl", "Did you mean 'info_nce'"),
        ("info_nce", "one.jsonl", "give at least 2"),
        ("info_nce", "none.jsonl", "no record"),
        ("info_nce", "same.jsonl", "a positive and a negative"),
        ("info_nce", "bare.jsonl", "has no positive"),
        ("margin_mse", "plain.jsonl", "hard negatives"),
        ("kl_distill", "plain.jsonl", "teacher's scores"),
    ],
)
def test_data_that_a_loss_cannot_use_are_refused(
    tiny_llama, data, tmp_path, objective, source, told
):
    small = {
        "one": [{"query": "a", "pos": ["b"]}],
        "none": [],
        "same": [{"query": "a", "pos": ["b"], "neg": ["b"]}] * 3,
        "bare": [{"query": "a"}] * 3,
        "plain": [{"query": f"a {i}", "pos": [f"b {i}"]} for i in range(9)],
    }
    for name, records in small.items():
        text = "".join(json.dumps(record) + "\n" for record in records)
        (data / f"{name}.jsonl").write_text(text)
    plan = a_plan(tiny_llama, (objective, {"data": [{"source": source}]}))
    with pytest.raises(embedlm.errors.EmbedLMError, match=told):
        refused(plan, data, tmp_path)


def test_nothing_to_train_is_refused(tiny_llama, data, tmp_path):
    with pytest.raises(InputError, match="trains nothing"):
        refused(a_plan(tiny_llama, ("info_nce", {"train": "heads"})), data, tmp_path)
    odd = {"train": "adapter", "adapter": {"targets": ["nothing"]}}
    with pytest.raises(InputError, match=r"targets .* linear layers are called .*q_proj"):
        refused(a_plan(tiny_llama, ("info_nce", odd)), data, tmp_path)


def test_the_command_without_a_plan(run, data, tmp_path):
    assert "cannot read the plan" in run("train", "no.yaml", "-o", tmp_path / "o").one_line()
    told = run("train", "prompteol", "-o", tmp_path / "o", "--scale", "huge").one_line()
    assert "tuning part" in told or "allowed: tiny" in told


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_learning_rates(schedule):
    from embedlm.schema.tuning import Optimizer

    settings = Optimizer(learning_rate=1.0, warmup=0.2, schedule=schedule)
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 20)
    assert rates[19] == 1.0
    assert rates[20] == pytest.approx(1.0)
    assert rates == sorted(rates[:20]) + sorted(rates[20:], reverse=True)
    assert rates[60] == pytest.approx({"linear": 0.5, "cosine": 0.5, "constant": 1.0}[schedule])
    last = {"linear": 1 / 80, "cosine": 0, "constant": 1}[schedule]
    assert rates[99] == pytest.approx(last, abs=1e-3)


@pytest.mark.parametrize(
    ("fields", "stored"),
    [
        ({}, torch.float32),
        ({"precision": "bfloat16"}, torch.bfloat16),
        ({"precision": "bfloat16", "save_dtype": "float32"}, torch.float32),
        ({"save_dtype": "int8"}, torch.int8),
    ],
)
def test_the_last_model_is_saved_in_the_plans_numbers(tiny_llama, data, tmp_path, fields, stored):
    stage = ("info_nce", {"optimizer": {"steps": 2}})
    plan = a_plan(tiny_llama, stage, stage, **fields)
    train(plan, tmp_path / "out", data=data)
    between = load_file(tmp_path / "out" / "stage-1-s0" / "model" / "model.safetensors")
    assert {weight.dtype for weight in between.values()} == {torch.float32}
    last = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert last["embed_tokens.weight"].dtype == stored

"""What a plan sets is what is done: with every kind of head, of adapter, and of start."""

import json

import numpy as np
import pytest
import torch
import yaml

import embedlm
from embedlm.data import Pair, Records
from embedlm.errors import JobError
from embedlm.evaluation.measures import spearman
from embedlm.schema.tuning import Stage
from embedlm.training import loss_scale, train
from embedlm.training.dev import dev_score
from embedlm.training.parameters import attention_dropout
from embedlm.training.plan import load_plan, tiny
from embedlm.training.stages import _load_trainable
from embedlm.training.trainable import TextRequest
from tests.command import sentences
from tests.training.test_runs import a_plan, data  # noqa: F401
from tests.training.test_settings import STEP, groups, of


def loss_of(plan, folder, data, kind):  # noqa: F811
    """Return the first value of a loss."""
    seen = []
    train(plan, folder, data=data, device="cpu", on_event=lambda *event: seen.append(event))
    return next(values[kind] for name, values in seen if name == "step")


@pytest.mark.parametrize("kind", ["kl_distill", "embedding_distill"])
def test_losses_read_vectors_as_the_recipe_gives_them(tiny_llama, data, tmp_path, kind):  # noqa: F811
    """A dot product of vectors of length 1 is their cosine."""
    options = {"teacher": str(tiny_llama)} if kind == "embedding_distill" else {}
    stage = (kind, {**STEP, **groups(), **of(kind, options=options)})
    found = {}
    for normalize in (False, True):
        plan = a_plan(tiny_llama, stage, change={"normalize": normalize}, log_every=1)
        found[normalize] = loss_of(plan, tmp_path / str(normalize), data, kind)
    if kind == "kl_distill":
        cosine = (kind, {**STEP, **groups(), **of(kind, options={"similarity": "cosine"})})
        wanted = loss_of(a_plan(tiny_llama, cosine, log_every=1), tmp_path / "cosine", data, kind)
        assert found[True] == pytest.approx(wanted, rel=1e-5)
    assert found[True] != pytest.approx(found[False], rel=0.01)


def test_tokens_that_have_no_vector_have_none_in_training(tiny_llama):
    skip = ["a", "e", "o", "."]
    head = {"multi_vector": {"skip": skip}}
    recipe = embedlm.Recipe.load("plain-mean").override({"heads": [head]})
    stage = Stage.model_validate({"name": "s", **of("late_interaction"), **groups()})
    model = _load_trainable(stage, str(tiny_llama), recipe, "cpu")
    texts = tuple(sentences(5))
    for role in ("document", "query"):
        plan = model.plan_chunks([TextRequest(texts, role)])
        rows = torch.cat([chunk() for chunk in plan.chunks])[plan.order_N]
        vectors = rows.unflatten(1, (plan.longest, -1)).detach().numpy()
        wanted = model.embedder.encode(list(texts), role=role, heads=["multi_vector"]).multi_vector
        for ours, theirs in zip(vectors, wanted, strict=True):
            np.testing.assert_allclose(ours[(ours != 0).any(1)], theirs, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 5},
        {"restrict": "text"},
        {"restrict": "text", "stop_words": "english", "top_k": 2, "expand": 3},
    ],
)
def test_sparse_weights_are_trained_as_they_are_read(tiny_llama, options):
    recipe = embedlm.Recipe.load("plain-mean").override({"heads": [{"sparse": options}]})
    stage = Stage.model_validate(
        {"name": "s", **of("info_nce", options={"head": "sparse"}), **groups()}
    )
    model = _load_trainable(stage, str(tiny_llama), recipe, "cpu")
    model.modules().requires_grad_(True)
    texts = (*sentences(5), "the of")
    plan = model.plan_chunks([TextRequest(texts, None)])
    rows = torch.cat([chunk() for chunk in plan.chunks])[plan.order_N]
    wanted = model.embedder.encode(list(texts)).sparse.toarray()
    np.testing.assert_allclose(rows.detach().numpy(), wanted, atol=1e-5)
    assert (rows.detach().numpy() > 0).sum() == (wanted > 0).sum()
    rows.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.modules().parameters())


def test_a_fitted_models_words_keep_their_weights(tiny_llama, data, tmp_path, caplog):  # noqa: F811
    recipe = {"name": "w", "pooling": {"kind": "mean", "weights": "sif", "remove_components": 1}}
    fitted = embedlm.load(tiny_llama, recipe, device="cpu").fit(sentences(100))
    fitted.save_pretrained(tmp_path / "fitted")
    wanted = fitted.readout.vocabulary_weights
    stage = Stage.model_validate({"name": "s", **of("info_nce"), **groups()})
    model = _load_trainable(stage, str(tmp_path / "fitted"), fitted.recipe, "cpu")
    np.testing.assert_array_equal(model.embedder.readout.vocabulary_weights, wanted)
    plan = a_plan(tmp_path / "fitted", ("info_nce", STEP), recipe=fitted.recipe.model_dump())
    train(plan, tmp_path / "run", data=data, device="cpu")
    trained = embedlm.load(tmp_path / "run" / "model", device="cpu")
    np.testing.assert_array_equal(trained.readout.vocabulary_weights, wanted)
    assert trained.readout.statistics.components_KD is None
    assert "fit it again" in caplog.text


def test_without_in_batch_negatives_no_head_has_any(tiny_llama, data, tmp_path):  # noqa: F811
    change = {"heads": ["dense", "sparse", "multi_vector"]}
    found = [
        loss_of(
            a_plan(
                tiny_llama,
                ("m3_self_distill", {**STEP, **groups(in_batch_negatives=inside)}),
                change=change,
            ),
            tmp_path / str(inside),
            data,
            "m3_self_distill",
        )
        for inside in (True, False)
    ]
    assert found[1] < found[0]


@pytest.mark.parametrize("name", ["t5", "opt", "bert", "llama", "gpt2"])
def test_a_stages_dropout_reaches_the_attention(model_folder, name):
    none = {
        "t5": {"dropout_rate": 0.0},
        "opt": {"dropout": 0.0},
        "bert": {"hidden_dropout_prob": 0.0},
        "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0},
    }
    stage = Stage.model_validate({"name": "s", **of("simcse"), **groups()})
    folder = model_folder(name, **none.get(name, {}))
    model = _load_trainable(stage, str(folder), embedlm.Recipe.load("plain-mean"), "cpu")
    for rate in (0.5, 0.0):
        with attention_dropout(model, rate):
            model.modules().train()
            chunk = model.plan_chunks([TextRequest(("river water boat",), None)]).chunks[0]
            assert torch.equal(chunk(), chunk()) == (rate == 0)


def test_scores_are_the_records_own_where_they_have_some(tiny_llama, data, tmp_path):  # noqa: F811
    bare = [json.loads(line) for line in (data / "groups.jsonl").read_text().splitlines()]
    for record in bare:
        del record["pos_scores"], record["neg_scores"]
    (tmp_path / "bare.jsonl").write_text("".join(json.dumps(record) + "\n" for record in bare))
    both = [{"source": "groups.jsonl"}, {"source": str(tmp_path / "bare.jsonl")}]
    stage = {**STEP, "data": both, **of("kl_distill", options={"teacher": str(tiny_llama)})}
    assert loss_of(a_plan(tiny_llama, ("kl_distill", stage)), tmp_path, data, "kl_distill") > 0


def test_the_recipes_adapters_are_merged_once(tiny_llama, data, tmp_path):  # noqa: F811
    strong = {"train": "adapter", "optimizer": {"steps": 3, "learning_rate": 0.05}}
    train(a_plan(tiny_llama, ("info_nce", strong)), tmp_path / "first", data=data, device="cpu")
    adapter = str(tmp_path / "first" / "stage-1-s0" / "adapter")
    still = ("info_nce", {"optimizer": {"steps": 1, "learning_rate": 1e-12}})
    plan = a_plan(tiny_llama, still, still, change={"backbone.adapters": [adapter]})
    model = train(plan, tmp_path / "second", data=data, device="cpu")
    wanted = embedlm.load(tiny_llama, "plain-mean", adapters=[adapter], device="cpu")
    texts = ["river water"]
    np.testing.assert_allclose(model.encode(texts), wanted.encode(texts), atol=1e-4)


def test_an_instruction_of_bare_texts_is_read(tiny_llama, data, tmp_path):  # noqa: F811
    found = []
    for instruction in (None, "Name the topic"):
        entry = {"source": "texts.txt", "instruction": instruction}
        loss = of("embedding_distill", options={"teacher": str(tiny_llama)})
        plan = a_plan(
            tiny_llama,
            ("embedding_distill", {**STEP, **loss, "data": [entry]}),
            change={"prompt.default": "[{instruction}: ]{text}"},
        )
        found.append(loss_of(plan, tmp_path / str(instruction), data, "embedding_distill"))
    assert found[0] != found[1]


@pytest.mark.parametrize(
    "change", [{"precision": "bfloat16"}, {"dev": {"source": "pairs.jsonl", "every": 2}}]
)
def test_a_run_of_other_settings_does_not_go_on(tiny_llama, data, tmp_path, change):  # noqa: F811
    plan = a_plan(tiny_llama, ("info_nce", STEP), dev={"every": 1}, save_dtype="float32")
    train(plan, tmp_path, data=data, device="cpu")
    with pytest.raises(JobError, match="trained by another plan"):
        train({**plan, **change}, tmp_path, data=data, device="cpu")


def test_prune_counts_in_the_texts_of_ridge_where_there_is_no_stage(
    tiny_llama,
    data,  # noqa: F811
    tmp_path,
):
    head = {"dense": {"projection": {"width": 32, "init": "ridge"}}}
    plan = {
        "model": str(tiny_llama),
        "recipe": "plain-mean",
        "change": {"heads": [head]},
        "prune": {"vocabulary": 300},
        "ridge": {"teacher": str(tiny_llama), "data": [{"source": "texts.txt"}]},
    }
    model = train(plan, tmp_path / "a", data=data, device="cpu")
    own = {**plan, "prune": {**plan["prune"], "data": [{"source": "texts.txt"}]}}
    same = train(own, tmp_path / "b", data=data, device="cpu")
    assert torch.equal(
        *(one.backbone.network.get_input_embeddings().weight for one in (model, same))
    )


def test_the_tiny_scale_makes_nothing_longer():
    stage = {
        "name": "s",
        "objective": [{"kind": "info_nce"}],
        "data": [{"source": "x"}],
        "max_length": {"query": 16, "document": 512},
        "batching": {"size": 4, "chunk_tokens": 64},
    }
    plan = load_plan({"stages": [stage], "dev": {"source": "x", "every": 2, "max_records": 7}})
    small = tiny(plan.plan)
    assert small.stages[0].max_length == {"query": 16, "document": 128}
    assert small.stages[0].batching == plan.plan.stages[0].batching
    assert (small.dev.every, small.dev.max_records) == (2, 7)
    assert "group_size" not in small.stages[0].batching.model_fields_set


def test_a_built_in_model_is_called_by_its_name(run, data, tmp_path):  # noqa: F811
    file = tmp_path / "plan.yaml"
    batching = {"size": 2, "group_size": 1}
    stage = ("info_nce", {**STEP, "batching": batching, "max_length": 8})
    file.write_text(yaml.safe_dump(a_plan("builtin-base", stage)))
    done = run("train", file, "-o", tmp_path / "out", "--data", data, "--device", "cpu")
    assert done.code == 0, done.err
    assert "stage s0: from builtin-base\n" in done.err


def test_small_gradients_in_float16_are_not_lost(tiny_llama, data, tmp_path):  # noqa: F811
    """AdamW makes the same step of a gradient of any size, as long as it is not rounded to 0."""
    steps = {"optimizer": {"steps": 3, "max_grad_norm": None, "learning_rate": 1e-3}}
    moved = []
    for weight in (1.0, 1e-6):
        stage = ("info_nce", {**of("info_nce", weight=weight), **steps})
        plan = a_plan(tiny_llama, stage, precision="float16", save_dtype="float32")
        model = train(plan, tmp_path / str(weight), data=data, device="cpu")
        moved.append(model.backbone.network.layers[0].mlp.up_proj.weight.detach())
    before = embedlm.load(tiny_llama, "plain-mean", device="cpu")
    start = before.backbone.network.layers[0].mlp.up_proj.weight
    whole, small = (float((one - start).abs().mean()) for one in moved)
    assert small > 0.5 * whole


def test_a_step_that_overflows_in_float16_is_left_out(tiny_llama, data, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(loss_scale, "FIRST", 2.0**60)
    seen = []
    stage = ("info_nce", {"optimizer": {"steps": 60, "learning_rate": 1e-4}})
    plan = a_plan(tiny_llama, stage, precision="float16", log_every=1, checkpoint_every=7)
    train(plan, tmp_path, data=data, device="cpu", on_event=lambda *event: seen.append(event))
    skipped = [values.get("skipped", 0) for kind, values in seen if kind == "step"]
    assert 0 < sum(skipped) < 60
    assert skipped[-1] == 0


@pytest.mark.parametrize("head", ["sparse", "multi_vector"])
def test_the_dev_set_is_scored_by_the_heads_that_the_recipe_has(tiny_llama, head):
    recipe = embedlm.Recipe.load("plain-mean").override({"heads": [head]})
    model = embedlm.load(tiny_llama, recipe, device="cpu")
    texts = sentences(12)
    pairs = [
        Pair(a, b, float(i)) for i, (a, b) in enumerate(zip(texts[::2], texts[1::2], strict=False))
    ]
    first, second = (model.encode(side) for side in (texts[::2], texts[1::2]))
    wanted = spearman(model.similarity_pairwise(first, second), [pair.score for pair in pairs])
    assert dev_score(model, Records("pairs", "pairs", tuple(pairs))) == pytest.approx(wanted)

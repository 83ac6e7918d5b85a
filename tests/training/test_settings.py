"""A setting is honoured or refused before anything is loaded; none is dropped."""

import json

import numpy as np
import pytest
import torch
import yaml

import embedlm
from embedlm.errors import EmbedLMError, InputError, JobError, ModelError, RecipeError
from embedlm.schema.tuning import Loss, Stage
from embedlm.training import train
from embedlm.training.loss_options import check_options, options_of
from embedlm.training.objectives import EMBEDDING
from embedlm.training.parameters import attention_dropout
from embedlm.training.plan import load_plan, tiny
from embedlm.training.stages import _load_trainable
from embedlm.training.trainable import TextRequest
from tests.command import sentences
from tests.training.test_runs import a_plan, data, weights_of  # noqa: F401

STEP = {"optimizer": {"steps": 1}}


def of(kind, **loss):
    """Return a stage with one objective and its constants."""
    return {"objective": [{"kind": kind, **loss}]}


def groups(**fields):
    return {"data": [{"source": "groups.jsonl", **fields}]}


def pairs(**fields):
    return {"data": [{"source": "pairs.jsonl", **fields}]}


VALUES = [
    ("triplet", {"temperature": 0.1}, "'triplet' has no option 'temperature'"),
    ("ntp", {"temperature": 0.1}, "'ntp' has no option 'temperature'; allowed: none"),
    ("ntp", {"options": {"replace": "all"}}, "'ntp' has no option 'replace'"),
    ("mntp", {"options": {"replace": "never"}}, "replace: Input should be 'bert' or 'all'"),
    ("ntp", {"matryoshka": [8]}, "takes no matryoshka"),
    ("uniformity", {"matryoshka": [8]}, "takes no matryoshka"),
    ("flops", {"matryoshka": [8]}, "takes no matryoshka"),
    ("late_interaction", {"matryoshka": [8]}, "takes no matryoshka"),
    ("m3_self_distill", {"matryoshka": [8]}, "takes no matryoshka"),
    ("embedding_distill", {"matryoshka": [8], "options": {"teacher": "t"}}, "takes no matryoshka"),
    ("info_nce", {"matryoshka": [8], "options": {"head": "sparse"}}, "takes no matryoshka"),
    ("info_nce", {"options": {"teacher": "t"}}, "has no option 'teacher'"),
    ("gist", {"options": {"teacher": "t", "reranker": "r"}}, "has no option 'reranker'"),
    ("kl_distill", {"options": {"teacher": "t", "reranker": "r"}}, "as teacher and as reranker"),
    ("kl_distill", {"options": {"teachers": "both"}}, "teachers: Input should be a valid list"),
    ("gist", {"options": {"teacher": 5}}, "teacher: Input should be a valid string"),
    ("info_nce", {"temperature": 0.1, "options": {"temperature": 1.0}}, "has two temperatures"),
    ("kl_distill", {"options": {"teacher_temperature": -1}}, "teacher_temperature is -1"),
    ("kl_distill", {"options": {"teacher_temperature": "warm"}}, "should be a valid number"),
    ("triplet", {"options": {"margin": float("nan")}}, "should be a finite number"),
    ("triplet", {"options": {"margin": 1e300}}, "gives inf"),
    ("gist", {"options": {"teacher": "t", "contrast_queries": "no"}}, "valid boolean"),
    ("info_nce", {"options": {"own_group_only": "no"}}, "valid boolean"),
    ("info_nce", {"options": {"directions": ["query_to_docs"]}}, "Did you mean 'query_to_doc'"),
    ("info_nce", {"options": {"hardness": "hard_negatives"}}, "the strength above 0"),
]


@pytest.mark.parametrize(("kind", "loss", "message"), VALUES)
def test_a_bad_value_of_a_later_stage_is_told_first(data, tmp_path, kind, loss, message):  # noqa: F811
    """No model is there: what is wrong with a loss is known from the plan and its data."""
    source = {"data": [{"source": "texts.txt" if kind in ("ntp", "mntp") else "groups.jsonl"}]}
    later = {**of(kind, **loss), **source, "name": "later"}
    plan = a_plan("no-such-model", ("info_nce", STEP), (kind, later))
    with pytest.raises(EmbedLMError, match=message) as refused:
        train(plan, tmp_path / "out", data=data, device="cpu")
    assert "later" in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", EMBEDDING)
def test_every_option_of_a_loss_may_be_given(kind):
    """The defaults of a loss, written out, are values that it takes."""
    defaults = {
        name: default
        for name, (_, default) in options_of(kind).items()
        if name not in ("teacher", "teachers", "reranker")
    }
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items()}
    check_options(Loss(kind=kind, options=options))


UNREAD = [
    ("info_nce", {"mask_probability": 0.3}, "mask_probability has no effect"),
    ("ntp", {"denoise": True}, "denoise has no effect"),
    ("cosent", {"batching": {"group_size": 4}}, "group_size has no effect: the records are pairs"),
    ("cosent", {"batching": {"demonstrations": 2}}, "demonstrations has no effect"),
    ("info_nce", {"batching": {"demonstrations": 2}}, "demonstrations has no effect: the recipe"),
    ("cosent", {"dynamic_negatives": {}}, "dynamic_negatives has no effect: no hard"),
    (
        "info_nce",
        {"dynamic_negatives": {}, "batching": {"group_size": 1}},
        "dynamic_negatives has no effect: no hard",
    ),
    ("late_interaction", {"dynamic_negatives": {}, **groups()}, "it compares dense vectors"),
    ("info_nce", groups(instruction="Find it"), "for role query has no {instruction}"),
    ("info_nce", groups(document_instruction="It"), "for role document has no {instruction}"),
    ("cosent", pairs(instruction="Compare"), "for texts without a role has no {instruction}"),
    ("cosent", pairs(document_instruction="It"), "document_instruction .* records are pairs"),
    ("ntp", {"data": [{"source": "texts.txt", "instruction": "x"}]}, "no objective embeds"),
    ("cosent", {"max_length": {"query": 8}}, "max_length.query has no effect"),
    ("info_nce", {"max_length": {"default": 8}}, "max_length.default has no effect"),
    ("info_nce", {"keep": "best"}, "keep: best has no effect"),
    (
        "info_nce",
        {"train": "adapter", **groups(adapter={"query": "q", "documnt": "d"})},
        "adapter.documnt .* Did you mean 'document'",
    ),
    (
        "info_nce",
        {"data": [{"source": "groups.jsonl", "weight": 2}, {"source": "groups.jsonl"}]},
        "some data sets have a weight and 'groups.jsonl' has none",
    ),
    (
        "info_nce",
        {**groups(weight=2), "batching": {"mixture_temperature": 2}},
        "mixture_temperature has no effect",
    ),
    ("info_nce", {"train": "adapter", "adapter": {"kind": "bitfit"}}, "is `train: bias`"),
    (
        "kl_distill",
        of("kl_distill", options={"reranker": "r"}),
        "reranker of kl_distill has no effect: all records have scores",
    ),
]


@pytest.mark.parametrize(("objective", "more", "message"), UNREAD)
def test_a_setting_that_nothing_reads_is_refused(data, tmp_path, objective, more, message):  # noqa: F811
    with pytest.raises(EmbedLMError, match=message):
        train(a_plan("no-such-model", (objective, more)), tmp_path / "out", data=data, device="cpu")
    assert not (tmp_path / "out").exists()


PLANS = [
    ({"teacher": "t"}, InputError, "teacher 't' has no effect"),
    ({"data": {"s0": [{"source": "groups.jsonl"}]}}, RecipeError, "has data of its own"),
    ({"dev": {"role": "query"}}, InputError, "allowed: query, document|no effect"),
    ({"dev": {"role": "querry"}}, InputError, "Did you mean 'query'"),
]


@pytest.mark.parametrize(("fields", "kind", "message"), PLANS)
def test_a_plans_setting_that_nothing_reads_is_refused(data, tmp_path, fields, kind, message):  # noqa: F811
    if "dev" in fields:
        fields = {"dev": {"source": "groups.jsonl", **fields["dev"]}}
    plan = {**a_plan("no-such-model", ("info_nce", STEP)), **fields}
    with pytest.raises(kind, match=message):
        train(plan, tmp_path / "out", data=data, device="cpu")


LATER = [
    ({"train": "adapter", "adapter": {"targets": ["q_proj", "nope"]}}, InputError, "targets nope"),
    ({"train": "bias"}, InputError, "train: bias trains nothing"),
    (
        {**of("gist", options={"teacher": "nobody/nothing"}), **groups()},
        ModelError,
        "stage 'later': teacher: ",
    ),
    (
        {
            "objective": [
                {"kind": "gist", "options": {"teacher": "a"}},
                {"kind": "embedding_distill", "options": {"teacher": "b"}},
            ],
            **groups(),
        },
        InputError,
        "names several models as teacher: a, b",
    ),
]


@pytest.mark.parametrize(("later", "kind", "message"), LATER)
def test_what_a_later_stage_cannot_train_is_told_first(
    tiny_llama,
    data,  # noqa: F811
    tmp_path,
    monkeypatch,
    later,
    kind,
    message,
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plan = a_plan(tiny_llama, ("info_nce", STEP), ("info_nce", {**STEP, "name": "later", **later}))
    with pytest.raises(kind, match=message):
        train(plan, tmp_path / "out", data=data, device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_list_with_a_wrong_entry_is_not_called_empty():
    with pytest.raises(RecipeError) as refused:
        load_plan({"stages": [{"name": "s", "objective": [{"kind": "cosent", "weigth": 1}]}]})
    assert "at least 1 item" not in str(refused.value)


def test_matryoshka_beyond_the_models_width_is_told(tiny_llama, data, tmp_path, caplog):  # noqa: F811
    stage = ("info_nce", {**STEP, **of("info_nce", matryoshka=[8, 512])})
    train(a_plan(tiny_llama, stage), tmp_path, data=data, device="cpu")
    assert "matryoshka 512 of info_nce changes nothing" in caplog.text


def test_a_head_that_the_model_will_not_give_is_told(tiny_llama, data, tmp_path, caplog):  # noqa: F811
    stage = ("late_interaction", {**STEP, **groups()})
    train(a_plan(tiny_llama, stage), tmp_path / "a", data=data, device="cpu")
    assert "add change: {heads: [dense, multi_vector]}" in caplog.text
    caplog.clear()
    change = {"heads": ["multi_vector"]}
    train(a_plan(tiny_llama, stage, change=change), tmp_path / "b", data=data, device="cpu")
    assert "heads" not in caplog.text


# -- honoured --------------------------------------------------------------------------------------


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

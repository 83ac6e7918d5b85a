"""A setting is honoured or refused before anything is loaded; none is dropped."""

import json
import shutil

import pytest
import yaml

from embedlm.errors import EmbedLMError, InputError, ModelError, RecipeError
from embedlm.schema.tuning import Loss
from embedlm.training import inputs, train
from embedlm.training.loss_options import check_options, options_of
from embedlm.training.objectives import EMBEDDING
from embedlm.training.plan import load_plan
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
def test_a_plans_setting_that_nothing_reads_is_refused(
    data,  # noqa: F811
    tmp_path,
    monkeypatch,
    fields,
    kind,
    message,
):
    """And the hub is not asked for a model before."""
    asked = []
    monkeypatch.setattr(inputs, "renderer_of", lambda *source: asked.append(source))
    if "dev" in fields:
        fields = {"dev": {"source": "groups.jsonl", **fields["dev"]}}
    plan = {**a_plan("no-such-model", ("info_nce", STEP)), **fields}
    with pytest.raises(kind, match=message):
        train(plan, tmp_path / "out", data=data, device="cpu")
    assert asked == []


LATER = [
    ({"train": "adapter", "adapter": {"targets": ["q_proj", "nope"]}}, InputError, "targets nope"),
    ({"train": "bias"}, InputError, "train: bias trains nothing"),
    ({"train": "heads"}, InputError, "train: heads trains nothing"),
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


def named(*, name="later", adapter="a", **more):
    """Return a stage that trains an adapter by name."""
    return {**STEP, "name": name, "train": "adapter", **groups(adapter=adapter), **more}


FOLLOWS = [
    ({**STEP, "name": "later"}, "trains the base, and an earlier stage has trained adapters"),
    (named() | {"adapter": {"rank": 4}}, "gives the adapter 'a' other settings"),
    (named(train="query_encoder"), "data set names another"),
    (named(**of("ntp")), "runs the base without an adapter by name"),
]


@pytest.mark.parametrize(("later", "message"), FOLLOWS)
def test_stages_that_cannot_follow_adapters_are_refused(data, tmp_path, later, message):  # noqa: F811
    plan = a_plan("no-such-model", ("info_nce", named(name="first")), ("info_nce", later))
    with pytest.raises(InputError, match=message):
        train(plan, tmp_path / "out", data=data, device="cpu")


def test_an_adapter_of_a_tied_table_is_refused_where_the_head_is_read(
    model_folder,
    data,  # noqa: F811
    tmp_path,
):
    tied = model_folder("llama", tie_word_embeddings=True)
    of_table = {**STEP, "train": "adapter", "adapter": {"targets": ["q_proj", "embed_tokens"]}}
    with pytest.raises(InputError, match="embed_tokens is the language-model head's table"):
        train(a_plan(tied, ("ntp", of_table)), tmp_path / "a", data=data, device="cpu")
    train(a_plan(tied, ("info_nce", of_table)), tmp_path / "b", data=data, device="cpu")


ALIKE = [
    ("info_nce", [{"query": f"q {i}", "pos": "x"} for i in range(9)], "the same positive"),
    ("info_nce", [{"query": "q", "pos": f"p {i}"} for i in range(9)], "the same query"),
    ("simcse", [{"text": "x"} for _ in range(9)], "the same text"),
]


@pytest.mark.parametrize(("objective", "records", "message"), ALIKE)
def test_records_that_are_no_negatives_of_each_other_are_refused(
    data,  # noqa: F811
    tmp_path,
    objective,
    records,
    message,
):
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "alike.jsonl").write_text(lines)
    stage = {**STEP, "data": [{"source": str(tmp_path / "alike.jsonl")}]}
    with pytest.raises(InputError, match=message):
        train(a_plan("no-such-model", (objective, stage)), tmp_path / "out", data=data)


def test_pairs_alone_in_a_batch_are_refused(data, tmp_path):  # noqa: F811
    stage = ("cosent", {**STEP, "batching": {"size": 1}})
    with pytest.raises(InputError, match="it compares pairs"):
        train(a_plan("no-such-model", stage), tmp_path / "out", data=data)


def test_a_stage_without_any_gradient_is_told(tiny_llama, data, tmp_path, caplog):  # noqa: F811
    loss = {"directions": ["query_to_doc"], "false_negative_margin": -10.0}
    stage = ("info_nce", {**STEP, **of("info_nce", options=loss)})
    train(a_plan(tiny_llama, stage), tmp_path, data=data, device="cpu")
    assert "has learnt nothing: the gradient was 0 in all 1 steps" in caplog.text


def test_the_callers_model_is_not_one_beside_the_plan(tiny_llama, data, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "plans" / "mine").mkdir(parents=True)
    shutil.copytree(tiny_llama, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "plans" / "plan.yaml"
    file.write_text(yaml.safe_dump(a_plan("no-such-model", ("info_nce", STEP))))
    train(str(file), tmp_path / "out", model="mine", data=data, device="cpu")


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


@pytest.mark.parametrize("name", ["instruction", "document_instruction"])
def test_an_instruction_of_a_start_that_nothing_reads_is_refused(tiny_llama, data, tmp_path, name):  # noqa: F811
    head = {"dense": {"projection": {"width": 32, "init": "ridge"}}}
    entry = {"source": "texts.txt", name: "Find it"}
    plan = {
        "model": str(tiny_llama),
        "recipe": "plain-mean",
        "change": {"heads": [head]},
        "ridge": {"teacher": str(tiny_llama), "data": [entry]},
    }
    with pytest.raises(InputError, match=f"ridge: {name} of"):
        train(plan, tmp_path / "out", data=data, device="cpu")

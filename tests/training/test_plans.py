"""Plans: every recipe that was tuned can be tuned here, and what a plan says is what is done."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import embedlm
from embedlm.data import read_records
from embedlm.errors import EmbedLMError, InputError, RecipeError
from embedlm.training import train
from embedlm.training.batches import BatchRow
from embedlm.training.objectives import EMBEDDING
from embedlm.training.plan import load_plan, tiny
from embedlm.training.teachers import SCALE, EmbeddingTeacher, RerankingTeacher
from tests.training.test_runs import a_plan, data, topical  # noqa: F401

TUNED = [name for name in embedlm.recipes() if embedlm.Recipe.load(name).tuning is not None]
EXAMPLES = sorted(
    (
        path
        for path in (Path(__file__).parents[2] / "examples").glob("*.yaml")
        if path.stem in embedlm.recipes()
    ),
    key=lambda path: path.stem,
)
KINDS = {"mntp": "texts.txt", "ntp": "texts.txt", "simcse": "texts.txt", "cosent": "pairs.jsonl"}


def test_every_tuned_recipe_has_its_example():
    assert [path.stem for path in EXAMPLES] == sorted(TUNED)
    assert len(TUNED) >= 40


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_a_whole_plan(path):
    source = load_plan(path)
    recipe = embedlm.Recipe.load(path.stem)
    assert [s.name for s in source.plan.stages] == [s.name for s in recipe.tuning.stages]
    assert all(stage.data for stage in source.plan.stages)
    assert source.plan.model == recipe.backbone.base or recipe.backbone.base is None
    small = tiny(source.plan)
    assert small.model == "builtin-base"
    most = [90 if stage.batching.demonstrations else 30 for stage in small.stages]
    assert all(s.optimizer.steps <= n for s, n in zip(small.stages, most, strict=True))


@pytest.mark.parametrize("name", TUNED)
def test_every_tuned_recipe_trains(tiny_llama, data, tmp_path, name):  # noqa: F811
    """Two steps of each stage on a tiny model: what is written opens, and has changed."""
    recipe = embedlm.Recipe.load(name)
    sets = {
        stage.name: [{"source": KINDS.get(stage.objective[0].kind, "groups.jsonl")}]
        for stage in recipe.tuning.stages
    }
    latent = {"pooling.latent": {"latents": 8, "heads": 2, "head_width": 16}}
    change = {} if recipe.pooling.latent is None else latent
    losses = [loss for stage in recipe.tuning.stages for loss in stage.objective]
    taught = any(EMBEDDING[one.kind].guide for one in losses if one.kind in EMBEDDING)
    plan = {"recipe": name, "data": sets, "change": change}
    plan |= {"teacher": str(tiny_llama)} if taught else {}
    small = tiny(load_plan(plan).plan)
    stages = []
    for stage in small.stages:
        steps = stage.optimizer.model_copy(update={"steps": 2})
        size = stage.batching.model_copy(update={"size": 6})
        update = {"optimizer": steps, "batching": size, "max_length": 200}
        stages.append(stage.model_copy(update=update))
    plan = small.model_copy(update={"model": str(tiny_llama), "stages": tuple(stages)})
    model = train(plan, tmp_path, data=data, device="cpu")
    heads = ["dense"] if any(h.kind == "dense" for h in recipe.heads) else None
    change |= {"heads": heads} if name == "bge-m3" else {}
    before = embedlm.load(tiny_llama, recipe.override(change), device="cpu")
    ours, theirs = (m.encode(["river water"], heads=heads) for m in (model, before))
    if not isinstance(ours, np.ndarray):
        kind = recipe.heads[0].kind
        ours, theirs = (getattr(found, kind) for found in (ours, theirs))
        ours, theirs = (x.toarray() if kind == "sparse" else x[0] for x in (ours, theirs))
    assert np.isfinite(ours).all()
    assert np.abs(ours - theirs).max() > 0


def test_data_and_teacher_go_where_they_are_missing():
    source = load_plan(
        {
            "recipe": "bge-icl",
            "data": {"mixture": [{"source": "x.jsonl"}]},
            "teacher": "builtin",
        }
    )
    (stage,) = source.plan.stages
    assert [one.source for one in stage.data] == ["x.jsonl"]
    found = {loss.kind: loss.options.get("teacher") for loss in stage.objective}
    assert found == {"info_nce": None, "kl_distill": "builtin"}
    assert source.plan.precision == "bfloat16"


def a_stage(**fields):
    """Return a plan of one stage with these fields."""
    return {"stages": [{"name": "s", "objective": [{"kind": "info_nce"}], **fields}]}


@pytest.mark.parametrize(
    ("plan", "kind", "told"),
    [
        ({"recipe": "plain-mean"}, RecipeError, "no tuning part"),
        ({"recipe": "llm2vec", "data": {"x": []}}, RecipeError, "its stages: mntp, supervised"),
        ({"recipe": "no-such"}, RecipeError, "no-such"),
        ("nothing.yaml", RecipeError, "cannot read the plan"),
        (a_stage(optimizer={"steps": 2, "epochs": 1}), RecipeError, "steps and epochs both say"),
        (a_stage(train="all", adapter={"rank": 4}), RecipeError, "adapter is for train:"),
        (a_stage(optimizer={"learning_rate": float("inf")}), RecipeError, "finite number"),
        (a_stage(objective=[{"kind": "info_nce", "weight": float("nan")}]), RecipeError, "finite"),
        (a_stage(max_length=0), RecipeError, "max_length.*greater than 0"),
        (a_stage(max_length={"passage": 64}), RecipeError, "max_length.*passage"),
        (a_stage(max_length={}), RecipeError, "max_length.*at least 1 item"),
        ("plain-mean", RecipeError, "no tuning part"),
    ],
)
def test_a_plan_that_is_none_is_refused(plan, kind, told):
    with pytest.raises(kind, match=told):
        load_plan(plan)


def test_an_option_that_a_loss_lacks_is_refused(tiny_llama, data, tmp_path):  # noqa: F811
    loss = {"kind": "info_nce", "options": {"temprature": 0.1}}
    plan = a_plan(tiny_llama, ("info_nce", {"objective": [loss]}))
    with pytest.raises(InputError, match=r"no option 'temprature'; allowed: .*temperature"):
        train(plan, tmp_path, data=data, device="cpu")


def test_a_relative_recipe_and_data_beside_the_plan(tiny_llama, data, tmp_path):  # noqa: F811
    (tmp_path / "own.yaml").write_text("name: own\npooling: {kind: last}\n")
    (tmp_path / "plan.yaml").write_text(
        yaml.safe_dump({**a_plan(tiny_llama, ("info_nce", {})), "recipe": "own.yaml"})
    )
    with pytest.raises(InputError, match=r"'groups.jsonl' is not there .*--data"):
        train(tmp_path / "plan.yaml", tmp_path / "out", device="cpu")
    (tmp_path / "groups.jsonl").write_text((data / "groups.jsonl").read_text())
    model = train(tmp_path / "plan.yaml", tmp_path / "out", device="cpu")
    assert model.recipe.pooling.kind == "last"


# -- teachers --------------------------------------------------------------------------------------


ROWS = [
    BatchRow(0, "river", ("water", "music", "trade")),
    BatchRow(0, "piano", ("music", "boat", "wheel")),
]


def test_a_teachers_scores_are_its_cosines(tiny_llama):
    teacher = embedlm.load(tiny_llama, "sgpt-asymmetric", device="cpu")
    found = EmbeddingTeacher(teacher).scores(ROWS)
    for row, scores in zip(ROWS, found, strict=True):
        wanted = teacher.similarity(
            teacher.encode_query([row.query]), teacher.encode_document(list(row.documents))
        )
        np.testing.assert_allclose(scores[None], SCALE * wanted, atol=1e-4)


def test_a_judges_scores_are_the_rerankers(tiny_llama):
    method = {"template": "{query}? {text}", "yes": "yes", "no": "no"}
    reranker = embedlm.Reranker(tiny_llama, method, device="cpu")
    judge = RerankingTeacher(reranker)
    found = judge.scores(ROWS)
    wanted = [reranker.score(row.query, list(row.documents), probability=False) for row in ROWS]
    torch.testing.assert_close(found, torch.tensor(np.array(wanted)), atol=1e-4, rtol=0)
    reranker.predict = None  # what is known is not asked for again
    assert torch.equal(judge.scores(ROWS[:1]), found[:1])


def test_a_student_comes_near_its_teacher(tiny_llama, model_folder, data, tmp_path):  # noqa: F811
    loss = {"kind": "embedding_distill", "options": {"metric": "cosine"}}
    more = {"objective": [loss], "optimizer": {"steps": 30, "learning_rate": 3e-3}}
    plan = a_plan(tiny_llama, ("embedding_distill", more), teacher=str(model_folder("qwen2")))
    seen = []
    train(plan, tmp_path, data=data, device="cpu", on_event=lambda *a: seen.append(a))
    values = [v["loss"] for kind, v in seen if kind == "step"]
    assert values[-1] < 0.8 * values[0]


def test_a_mixture_of_records_with_and_without_negatives_has_groups_of_one_size():
    from embedlm.data import Group, Records
    from embedlm.schema.tuning import Batching, Data
    from embedlm.training.batches import Batches

    some = Records("some", "groups", tuple(Group(f"q{i}", (f"p{i}",)) for i in range(9)))
    every = Records(
        "every", "groups", tuple(Group(f"r{i}", (f"s{i}",), (f"n{i}",)) for i in range(9)), True
    )
    sets = [Data(source="a"), Data(source="b")]
    batches = Batches([some, every], sets, Batching(size=8, group_size=3), 0)
    for _ in range(6):
        for row in batches.next().rows:
            assert len(row.documents) == 3
            assert row.query[1:] == row.documents[0][1:]
            assert row.documents[0] not in row.documents[1:]
    alone = Batches([some], sets[:1], Batching(size=8, group_size=3), 0)
    assert {len(row.documents) for row in alone.next().rows} == {1}
    same = Records("same", "groups", tuple(Group(f"q{i}", ("p",)) for i in range(9)))
    with pytest.raises(InputError, match="no negatives can be drawn"):
        Batches([same, every], sets, Batching(size=18, group_size=3), 0).next()


def test_scores_that_no_objective_reads_take_no_negatives_away(tmp_path):
    from embedlm.data import read_records
    from embedlm.schema.tuning import Batching, Data, Loss
    from embedlm.training.batches import Batches
    from embedlm.training.objective_checks import check_objective

    mined = {"pos_scores": [1.0], "neg": ["n", "m"], "neg_scores": [0.5, 0.2]}
    lines = [{"query": f"q{i}", "pos": [f"p{i}"], **mined} for i in range(8)]
    lines.append({"query": "q8", "pos": ["p8"], "pos_scores": [1.0]})  # none survived the rules
    file = tmp_path / "mined.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    records, batching = read_records(file), Batching(size=9, group_size=3)
    assert records.has_scores
    batches = Batches([records], [Data(source="a")], batching, 0, scored=False)
    check_objective([Loss(kind="info_nce")], batches)
    rows = batches.next().rows
    assert {len(row.documents) for row in rows} == {3}
    assert not any(row.teacher for row in rows)
    for kind in ("kl_distill", "stable_distill"):
        with pytest.raises(InputError, match="1 of the 9 records have no negatives"):
            check_objective([Loss(kind=kind)], Batches([records], [Data(source="a")], batching, 0))


# -- records ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"query": 3, "pos": ["b"]}, "not a text"),
        ({"query": "a", "pos": []}, "is empty"),
        ({"query": "a", "pos": ["b"], "pos_scores": [1], "neg_scores": [2]}, "2 scores for 1"),
        ({"query": "a", "pos": ["b"], "scores": ["x"]}, "no number"),
        ({"sentence1": "a", "score": 1}, "no sentence2"),
        ({"sentence1": "a", "sentence2": "b", "score": float("nan")}, "no number"),
        ({"x": 1}, "expected are query"),
    ],
)
def test_a_bad_record_is_told_with_its_line(tmp_path, record, told):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"query": "a", "pos": ["b"]}) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(EmbedLMError, match=told) as error:
        read_records(path)
    assert "x.jsonl:2" in str(error.value)


def test_a_plan_without_a_model_trains_the_built_in_base(tmp_path):
    pairs = [("A man runs.", "A person runs.", 5.0), ("A man runs.", "Shares fell.", 0.0)]
    file = tmp_path / "dev.jsonl"
    file.write_text("".join(json.dumps({"s1": a, "s2": b, "score": s}) + "\n" for a, b, s in pairs))
    plan = {
        "stages": [
            {
                "name": "graded",
                "objective": [{"kind": "cosent"}],
                "data": [{"source": str(file)}],
                "batching": {"size": 2},
                "optimizer": {"epochs": 1},
            }
        ]
    }
    assert train(plan, tmp_path / "out", device="cpu").dim == 576

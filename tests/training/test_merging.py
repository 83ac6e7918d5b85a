"""Merged models, and trackers that are told what happens."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import embedlm
from embedlm.errors import InputError, MissingExtraError, UnsupportedError
from embedlm.training import train
from embedlm.training.merging import cocktail_weights, merge
from tests.backbone.test_adapter_kinds import lora, make
from tests.training.test_runs import a_plan, data, weights  # noqa: F401

TEXTS = ["river water", "music theory"]


@pytest.fixture
def both(tiny_llama, data, tmp_path):  # noqa: F811
    """Return the folders of a model before and after tuning."""
    train(a_plan(tiny_llama, ("info_nce", {})), tmp_path / "run", data=data, device="cpu")
    embedlm.load(tiny_llama, "plain-mean").save_pretrained(tmp_path / "base")
    return [tmp_path / "base", tmp_path / "run" / "model"]


def own(folder):
    return embedlm.load(folder, device="cpu").backbone.network.state_dict()


def test_a_merge_is_the_weighted_mean(both, tmp_path):
    model = merge(both, tmp_path / "merged", weights=[1, 3], device="cpu")
    base, tuned = (own(folder) for folder in both)
    for name, value in model.backbone.network.state_dict().items():
        torch.testing.assert_close(value, 0.25 * base[name] + 0.75 * tuned[name])
    again = embedlm.load(tmp_path / "merged", device="cpu")
    np.testing.assert_array_equal(again.encode(TEXTS), model.encode(TEXTS))
    same = merge([both[1], both[1]], tmp_path / "same", device="cpu")
    wanted = embedlm.load(both[1], device="cpu").encode(TEXTS)
    np.testing.assert_allclose(same.encode(TEXTS), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("dtypes", "asked", "kept"),
    [
        (("bfloat16", "bfloat16"), None, torch.bfloat16),
        (("bfloat16", "float32"), None, torch.float32),
        (("bfloat16", "bfloat16"), "float32", torch.float32),
    ],
)
def test_a_merge_is_stored_in_the_numbers_of_its_models(tiny_llama, tmp_path, dtypes, asked, kept):
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder, dtype in zip(folders, dtypes, strict=True):
        embedlm.load(tiny_llama, "plain-mean", device="cpu").save_pretrained(
            folder, save_dtype=dtype
        )
    merge(folders, tmp_path / "merged", save_dtype=asked, device="cpu")
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {kept}


def test_the_better_model_weighs_more(both, data):  # noqa: F811
    found = cocktail_weights(both, data / "pairs.jsonl", device="cpu")
    assert sum(found) == pytest.approx(1)
    assert found[1] > found[0]
    sharp = cocktail_weights(both, data / "pairs.jsonl", temperature=0.01, device="cpu")
    assert sharp[1] > found[1]


def test_the_command(run, both, data, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    done = run("merge", *both, "-o", out, "--weights", "0.5,0.5", "--device", "cpu")
    assert done.code == 0, done.err
    embedlm.load(out)
    other = tmp_path / "weighed"
    told = run("merge", *both, "-o", other, "--examples", data / "pairs.jsonl", "--json")
    assert sum(json.loads(told.out)["weights"]) == pytest.approx(1)
    both_said = run("merge", *both, "-o", out, "--weights", "1,1", "--examples", "x.jsonl")
    assert "give one" in both_said.one_line()


def test_what_does_not_fit_is_refused(both, model_folder, tmp_path):
    with pytest.raises(InputError, match="give two or more to merge"):
        merge(both[:1], tmp_path / "x")
    with pytest.raises(InputError, match="3 weights were given for 2"):
        merge(both, tmp_path / "x", weights=[1, 2, 3])
    with pytest.raises(InputError, match="sum"):
        merge(both, tmp_path / "x", weights=[1, -1])
    with pytest.raises(InputError, match="one architecture"):
        merge([both[0], model_folder("gpt2")], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_models_of_different_tokenizers_are_refused(tiny_llama, tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        embedlm.load(tiny_llama, "plain-mean").save_pretrained(folder)
    file = folders[1] / "tokenizer.json"
    facts = json.loads(file.read_text())
    ids = facts["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    file.write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"different tokenizers, e\.g\. for the token 'a'"):
        merge(folders, tmp_path / "x", device="cpu")


def test_a_merged_model_keeps_the_tokenizer_and_rows_of_an_adapter(tiny_llama, tmp_path):
    pytest.importorskip("peft")
    folders = [tmp_path / name for name in "ab"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.add_tokens(["river water", "<new>"])
    for folder in folders:
        make(tiny_llama, tmp_path / "one", lora(), rows=len(tokenizer))
        tokenizer.save_pretrained(tmp_path / "one")
        embedlm.load(tmp_path / "one", "plain-mean").save_pretrained(folder)
    merged = merge(folders, tmp_path / "x", device="cpu")
    assert merged.render(TEXTS).ids == tokenizer(TEXTS)["input_ids"]
    single = embedlm.load(folders[0], device="cpu").encode(TEXTS)
    np.testing.assert_allclose(merged.encode(TEXTS), single, atol=1e-6)


def test_a_merge_never_overwrites_what_it_reads(run, both, tmp_path):
    before = [(folder / "model.safetensors").read_bytes() for folder in both]
    for models, output, message in (
        (both, both[0], "is an input, too"),
        ([both[0], both[0]], both[1], "is there already"),
        (both, tmp_path, "which is read"),
        (both, both[1] / "inside", "lies inside"),
    ):
        assert message in run("merge", *models, "-o", output).one_line()
        with pytest.raises(InputError, match=message):
            merge(models, output)
    assert [(folder / "model.safetensors").read_bytes() for folder in both] == before


def test_tensorboard_is_told(tiny_llama, data, tmp_path):  # noqa: F811
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    plan = a_plan(tiny_llama, ("info_nce", {}), ("cosent", {}), dev={"every": 6}, log_every=4)
    train({**plan, "trackers": ["tensorboard"]}, tmp_path, data=data, device="cpu")
    found = {}
    for place in (tmp_path / "trackers").rglob("events*"):
        events = reader.EventAccumulator(str(place.parent))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found[tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    assert [step for step, _ in found["s0/loss"]] == [4, 8, 12]
    assert [step for step, _ in found["s1/loss"]] == [16, 20, 24]
    assert [step for step, _ in found["s1/dev/score"]] == [12, 18, 24]


def test_a_tracker_that_is_not_installed_is_told(tiny_llama, data, tmp_path):  # noqa: F811
    pytest.importorskip("accelerate")
    try:
        import wandb  # noqa: F401
    except ImportError:
        plan = {**a_plan(tiny_llama, ("info_nce", {})), "trackers": ["wandb"]}
        with pytest.raises(MissingExtraError, match="pip install wandb"):
            train(plan, tmp_path, data=data, device="cpu")


def test_switchable_adapters_are_not_averaged(tiny_llama, both, tmp_path):
    """The mean of two products of matrices is not the product of their means."""
    pytest.importorskip("peft")
    make(tiny_llama, tmp_path / "one", lora())
    recipe = embedlm.Recipe.load("plain-mean").override({"backbone.merge": False})
    embedlm.load(tmp_path / "one", recipe, device="cpu").save_pretrained(tmp_path / "switched")
    for models in ([tmp_path / "switched", both[0]], [both[0], tmp_path / "switched"]):
        with pytest.raises(UnsupportedError, match="not the mean of the products; merge one first"):
            merge(models, tmp_path / "x", device="cpu")
    assert not (tmp_path / "x").exists()

"""Models cut to the neurons that do most."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

import embedlm
from embedlm.compress import prune
from embedlm.compress.width import _packs
from embedlm.errors import InputError, UnsupportedError
from tests.backbone.test_adapters import make_adapter
from tests.command import sentences

TEXTS = ["plants make food", "x", "naïve café 東京", "a committee met on Tuesday"]
ALIVE = 20
NAMES = ["llama", "mistral-sliding", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "bert"]


def matrices(network):
    """Yield the parameters into and out of the neurons of each layer."""
    of = dict(network.named_parameters())
    out = [name for name in of if name.endswith(("mlp.down_proj.weight", ".output.dense.weight"))]
    for name in (name for name in out if "attention" not in name):
        block = name.rsplit(".", 3)[0] + "."
        ends = ("gate_proj.weight", "up_proj.weight", "up_proj.bias", "intermediate.dense.weight")
        ends = (*ends, "gate_proj.bias", "intermediate.dense.bias")
        into = [key for key in of if key.startswith(block) and key.endswith(ends)]
        yield [of[key] for key in into], of[name]


def with_dead_neurons(source, target, how):
    """Save a model in which some neurons add nothing; return those that live, by layer."""
    model = embedlm.load(source, recipe="plain-mean", dtype="float32", lm_head=True)
    living = []
    for layer, (into, out) in enumerate(matrices(model.backbone.network)):
        order = torch.randperm(out.shape[1], generator=torch.Generator().manual_seed(layer))
        dead = order[ALIVE:]
        with torch.no_grad():
            for weight in [out.T] if how == "out" else into:
                weight[dead] = 0
        living.append(order[:ALIVE].sort().values)
    assert len(living) == 3
    model.save_pretrained(target)
    return living


@pytest.mark.parametrize("how", ["into", "out"])
@pytest.mark.parametrize("name", NAMES)
def test_the_living_neurons_are_kept_and_vectors_stay(model_folder, tmp_path, name, how):
    living = with_dead_neurons(model_folder(name), tmp_path / "whole", how)
    texts = sentences(40)
    facts = prune(tmp_path / "whole", tmp_path / "cut", intermediate=ALIVE, texts=texts)
    assert facts["intermediate"] == [48, ALIVE]
    assert facts["layers"] == [3, 3]
    assert facts["parameters"][1] < facts["parameters"][0]
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert config["intermediate_size"] == ALIVE
    whole, cut = (embedlm.load(tmp_path / one) for one in ("whole", "cut"))
    pairs = zip(matrices(whole.backbone.network), matrices(cut.backbone.network), strict=True)
    for keep, ((into, out), (own_into, own_out)) in zip(living, pairs, strict=True):
        assert torch.equal(own_out, out[:, keep])
        assert len(own_into) == len(into) == 2
        for own, weight in zip(own_into, into, strict=True):
            assert torch.equal(own, weight[keep])
    np.testing.assert_allclose(cut.encode(TEXTS), whole.encode(TEXTS), atol=2e-6)
    network, missing = AutoModel.from_pretrained(tmp_path / "cut", output_loading_info=True)
    assert not [key for key in missing["missing_keys"] if "pooler" not in key]
    with torch.no_grad():
        states = network(torch.tensor(whole.render(TEXTS[:1]).ids)).last_hidden_state
    np.testing.assert_allclose(cut.encode(TEXTS[0]), states[0].mean(0), atol=1e-4)


def test_biases_are_cut_alike(model_folder, tmp_path):
    source = model_folder("llama", mlp_bias=True)
    model = embedlm.load(source, recipe="plain-mean", dtype="float32", lm_head=True)
    for name, parameter in model.backbone.network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "source")
    living = with_dead_neurons(tmp_path / "source", tmp_path / "whole", "into")
    prune(tmp_path / "whole", tmp_path / "cut", intermediate=ALIVE, texts=sentences(20))
    whole, cut = (embedlm.load(tmp_path / one) for one in ("whole", "cut"))
    own, other = (next(matrices(one.backbone.network))[0] for one in (cut, whole))
    assert [weight.shape[0] for weight in own] == [ALIVE] * 4
    assert all(torch.equal(a, b[living[0]]) for a, b in zip(own, other, strict=True))
    np.testing.assert_allclose(cut.encode(TEXTS), whole.encode(TEXTS), atol=2e-6)


def by_hand(source, texts, size):
    """Return what the first layer keeps, by transformers' own network, a text at a time."""
    tokenizer = embedlm.load(source, recipe="plain-mean").tokenizer
    network, seen = AutoModel.from_pretrained(source), []
    linear = network.layers[0].mlp.down_proj
    linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].abs()))
    with torch.no_grad():
        for text in texts:
            network(torch.tensor([tokenizer.encode(text)]))
        worth = torch.cat(seen).mean(0) * (linear.weight**2).sum(0).sqrt()
    return worth.topk(size).indices.sort().values


@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_the_choice_is_by_the_texts(model_folder, tmp_path, monkeypatch, attention):
    if attention == "padded":
        monkeypatch.setattr("embedlm.backbone.loading.packing_is_exact", lambda *_: False)
    source, chosen = model_folder("llama"), []
    for number, texts in enumerate((sentences(30), ["x", "7 7 7", "x, 7"])):
        folder = tmp_path / str(number)
        prune(source, folder, layers=2, intermediate=12, texts=iter(texts))
        weight = load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
        whole = load_file(source / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
        keep = by_hand(source, texts, 12)
        assert torch.equal(weight, whole[keep])
        chosen.append(keep)
    assert not torch.equal(*chosen)


def test_later_layers_change_nothing_of_the_choice(model_folder, tmp_path):
    source, texts = model_folder("bert"), sentences(20)
    prune(source, tmp_path / "both", layers=1, intermediate=10, texts=texts)
    prune(source, tmp_path / "narrow", intermediate=10, texts=texts)
    prune(tmp_path / "narrow", tmp_path / "then", layers=1)
    both, then = (load_file(tmp_path / one / "model.safetensors") for one in ("both", "then"))
    assert both.keys() == then.keys()
    for name, tensor in both.items():
        assert torch.equal(tensor, then[name]), name


def test_all_that_can_be_cut_at_once(model_folder, tmp_path):
    source, texts = model_folder("qwen3"), sentences(200)
    sizes = {"layers": 2, "vocabulary": 350, "intermediate": 16}
    facts = prune(source, tmp_path / "cut", **sizes, texts=texts, save_dtype="int8")
    assert facts["layers"] == [3, 2]
    assert facts["tokens"] == [400, 350]
    assert facts["intermediate"] == [48, 16]
    stored = load_file(tmp_path / "cut" / "model.safetensors")
    (matrix,) = (stored[key] for key in stored if key.endswith("layers.0.mlp.down_proj.weight"))
    assert matrix.dtype == torch.int8
    assert matrix.shape[-2:] == (32, 16)
    prune(source, tmp_path / "whole", **sizes, texts=texts)
    cut, whole = (embedlm.load(tmp_path / one, dtype="float32") for one in ("cut", "whole"))
    assert cut.backbone.layer_count == 2
    assert len(cut.tokenizer) == 350
    assert sum(p.numel() for p in cut.backbone.network.parameters()) <= facts["parameters"][1]
    alike = (cut.encode(TEXTS) * whole.encode(TEXTS)).sum(-1)
    norms = [np.linalg.norm(one.encode(TEXTS), axis=-1) for one in (cut, whole)]
    assert (alike / norms[0] / norms[1]).min() > 0.995
    numbers = {"texts": texts, "save_dtype": "int8"}
    again = prune(tmp_path / "cut", tmp_path / "again", intermediate=8, **numbers)
    assert again["intermediate"] == [16, 8]
    stored = load_file(tmp_path / "again" / "model.safetensors")
    (matrix,) = (stored[key] for key in stored if key.endswith("layers.0.mlp.down_proj.weight"))
    assert matrix.dtype == torch.int8
    assert embedlm.load(tmp_path / "again").encode(TEXTS).shape == (4, 32)


def test_as_many_as_there_are_is_no_cut(model_folder, tmp_path):
    source = model_folder("gemma2")
    facts = prune(source, tmp_path / "cut", intermediate=48, texts=["a"])
    assert facts["parameters"][0] == facts["parameters"][1]
    whole, cut = (embedlm.load(one, recipe="plain-mean") for one in (source, tmp_path / "cut"))
    np.testing.assert_array_equal(whole.encode(TEXTS), cut.encode(TEXTS))


def test_rows_of_one_length_run_together():
    rows = [[1] * length for length in (3, 900, 1, 3, 900, 900, 3000)]
    lengths = [[len(row) for row in pack] for pack in _packs(rows)]
    assert lengths == [[1], [3, 3], [900, 900], [900], [3000]]


def test_merged_adapters_are_cut_and_switchable_ones_refused(tiny_llama, tmp_path):
    adapter = make_adapter(tiny_llama, tmp_path / "one")
    options = {"recipe": "plain-mean", "adapters": [str(adapter)]}
    merged = embedlm.load(tiny_llama, **options)
    merged.save_pretrained(tmp_path / "merged")
    prune(tmp_path / "merged", tmp_path / "a", intermediate=48, texts=TEXTS)
    own = embedlm.load(tmp_path / "a").encode(TEXTS)
    np.testing.assert_allclose(own, merged.encode(TEXTS), atol=1e-6)
    embedlm.load(tiny_llama, **options, merge=False).save_pretrained(tmp_path / "both")
    for size in ({"layers": 1}, {"intermediate": 9, "texts": TEXTS}):
        with pytest.raises(UnsupportedError, match="'adapters/one'"):
            prune(tmp_path / "both", tmp_path / "b", **size)
    embedlm.load(tmp_path / "both", adapters=["adapters/one"], merge=True).save_pretrained(
        tmp_path / "one-folder"
    )
    prune(tmp_path / "one-folder", tmp_path / "b", intermediate=48, texts=TEXTS)
    own = embedlm.load(tmp_path / "b").encode(TEXTS)
    np.testing.assert_allclose(own, merged.encode(TEXTS), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "error", "told"),
    [
        ("llama", {"intermediate": 49, "texts": TEXTS}, InputError, "49 neurons a layer"),
        ("llama", {"intermediate": 0, "texts": TEXTS}, InputError, "intermediate is 0"),
        ("llama", {"intermediate": 8}, InputError, "give some"),
        ("gpt2", {"intermediate": 8, "texts": TEXTS}, UnsupportedError, "allowed: llama"),
        ("t5", {"intermediate": 8, "texts": TEXTS}, UnsupportedError, "allowed: llama"),
    ],
)
def test_what_cannot_be_cut(model_folder, tmp_path, name, options, error, told):
    with pytest.raises(error, match=told):
        prune(model_folder(name), tmp_path / "cut", **options)
    assert not (tmp_path / "cut").exists()


def test_a_model_that_runs_no_layers_is_refused(model_folder, tmp_path):
    embedlm.load(model_folder("llama"), recipe="static-mean").save_pretrained(tmp_path / "static")
    with pytest.raises(UnsupportedError, match="'model2vec', which cannot be cut"):
        prune(tmp_path / "static", tmp_path / "cut", intermediate=8, texts=TEXTS)


def test_a_table_keeps_its_numbers(model_folder, tmp_path):
    model = embedlm.load(model_folder("llama"), recipe="static-mean")
    model.save_pretrained(tmp_path / "static", save_dtype="float16")
    prune(tmp_path / "static", tmp_path / "same")
    assert embedlm.load(tmp_path / "same").backbone.dtype == torch.float16


def test_the_command(run, tiny_llama, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("".join(f"{text}\n" for text in sentences(50)))
    words = ("compress", str(tiny_llama), "--device", "cpu")
    narrow = (*words, "--intermediate", "16", "--texts", file)
    done = run(*narrow, "-o", str(tmp_path / "a"))
    assert done.code == 0, done.err
    assert "intermediate: 48 -> 16\n" in done.out
    assert "texts are" not in done.out
    done = run(*narrow, "-o", str(tmp_path / "b"), "--json")
    assert json.loads(done.out)["intermediate"] == [48, 16]
    for more, told in (
        (("--texts", file), "--intermediate"),
        (("--intermediate", "16"), "give some"),
        (("--intermediate", "99", "--texts", file), "has 48"),
        (("--intermediate", "0", "--texts", file), "above 0"),
        ((), "--intermediate"),
    ):
        assert told in run(*words, *more, "-o", str(tmp_path / "c")).one_line()

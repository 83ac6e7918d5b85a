"""Layers in 8 bits: close to the whole numbers, packed where those are, the same in any company."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import embedlm
from embedlm.backbone import load_backbone
from embedlm.backbone.quantised import Int8Linear, quantise, share_inputs
from embedlm.errors import UnsupportedError
from embedlm.schema.recipe import Backbone
from tests.backbone.test_architectures import REPRESENTATIVE, saved
from tests.backbone.test_backbone import TEXTS, load, relative

FLOATS_ALONE = {"albert", "mamba"}
"""Networks that have no list of layers, or read their weights past the layers that hold them."""


@pytest.mark.parametrize(("dtype", "least"), [("int8", 0.99), ("fp8", 0.98)])
def test_eight_bits_stay_close_and_are_not_saved(dtype, least, model_folder, tmp_path):
    whole = load(model_folder, "qwen3").encode(TEXTS)
    model = load(model_folder, "qwen3", dtype=dtype)
    found = model.encode(TEXTS)
    cosine = (whole * found).sum(1) / np.linalg.norm(whole, axis=1) / np.linalg.norm(found, axis=1)
    assert cosine.min() > least
    assert not np.array_equal(whole, found)
    alone = np.stack([model.encode(text) for text in TEXTS])  # a token's scale is its own
    assert relative(found, alone) < 1e-2
    with pytest.raises(UnsupportedError, match=dtype):
        model.save_pretrained(tmp_path / "out")
    with pytest.raises(UnsupportedError, match="no plain linear layers"):
        load(model_folder, "gpt2", dtype=dtype)


@pytest.mark.parametrize("tokens", [1, 24, 700])
def test_int8_in_blocks_equals_plain_integers(tokens, monkeypatch):
    torch.manual_seed(tokens)
    plain = torch.nn.Linear(96, 160)
    with torch.no_grad():
        plain.weight[:40] = 1.0  # the largest sums
    x_TI = torch.randn(tokens, 96)
    x_TI[: tokens // 2] = 1.0
    blocked = Int8Linear(plain)
    monkeypatch.setattr("embedlm.backbone.quantised._exact_in_blocks", lambda: False)
    rows = Int8Linear(plain)
    assert not rows.blocked
    with torch.no_grad():
        assert relative(blocked(x_TI).numpy(), rows(x_TI).numpy()) < 1e-6
        assert relative(blocked(x_TI).numpy(), plain(x_TI).numpy()) < 2e-2


@pytest.mark.parametrize("name", REPRESENTATIVE)
@pytest.mark.filterwarnings("ignore")
def test_int8_runs_as_the_float_model_does_and_alike_in_any_company(name, tmp_path):
    """A float's last bit would be a step of int8, so rows never meet other kernels together."""
    folder, recipe = saved(name, tmp_path), Backbone(attention="native")
    floats = load_backbone(folder, recipe, dtype="float32", device="cpu")
    if name in FLOATS_ALONE:
        with pytest.raises(UnsupportedError):
            load_backbone(folder, recipe, dtype="int8", device="cpu")
        return
    bytes_ = load_backbone(folder, recipe, dtype="int8", device="cpu")
    assert bytes_.packs == floats.packs
    generator = torch.Generator().manual_seed(0)
    lengths = [37, 3, 12, 12, 1]
    rows = [torch.randint(5, floats.vocab_size, (n,), generator=generator) for n in lengths]
    rows = [row.tolist() for row in rows]
    with torch.inference_mode():
        together = bytes_.run(rows).float().split(lengths)
        for row, found in zip(rows, together, strict=True):
            alone = bytes_.run([row]).float()
            assert (found - alone).norm() <= 1e-4 * alone.norm().clamp_min(1e-9), (name, len(row))


def test_the_built_in_model_packs_in_int8():
    model = embedlm.load(dtype="int8", device="cpu")
    assert model.backbone.packs
    texts = [" ".join(TEXTS)[: 20 + 60 * at] for at in range(12)]
    together = model.encode(texts, show_progress=False)
    alone = np.stack([model.encode(text) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)


class Changing(nn.Module):
    """Two products of one tensor, which may be changed between them."""

    def __init__(self, changes):
        super().__init__()
        self.first, self.second, self.changes = nn.Linear(8, 8), nn.Linear(8, 8), changes

    def forward(self, x):
        y = self.first(x)
        if self.changes:
            x.mul_(-1)
        return y + self.second(x)


class Keeping(Changing):
    """Writes what it is given to a tensor that it keeps."""

    def __init__(self):
        super().__init__(False)
        self.kept_TI = torch.zeros(5, 8)

    def forward(self, x):
        return super().forward(self.kept_TI.copy_(x))


def test_an_input_that_a_network_keeps_is_scaled_anew():
    torch.manual_seed(0)
    network = Keeping()
    quantise([network], "int8")
    rows = torch.randn(2, 5, 8)
    with torch.inference_mode():
        wanted = [network(x_TI) for x_TI in rows]
        share_inputs([network], *[partial(network, x_TI) for x_TI in rows])
        assert not network.first.shares
        for x_TI, wanted_TO in zip(rows, wanted, strict=True):
            assert torch.equal(network(x_TI), wanted_TO)


@pytest.mark.parametrize("changes", [False, True])
def test_an_input_is_scaled_once_unless_it_is_changed(changes, monkeypatch):
    torch.manual_seed(0)
    network = Changing(changes)
    assert quantise([network], "int8") == 2
    x_TI = torch.randn(5, 8)
    with torch.inference_mode():
        wanted = network(x_TI.clone())
        share_inputs([network], lambda: network(x_TI.clone()))
        assert network.first.shares == network.second.shares == (not changes)
        assert torch.equal(network(x_TI.clone()), wanted)
        scaled = []
        real = Int8Linear._in_bytes
        monkeypatch.setattr(
            Int8Linear, "_in_bytes", lambda self, q: scaled.append(len(q)) or real(self, q)
        )
        network(x_TI.clone())
        assert len(scaled) == 1 + changes
        other = torch.randn(5, 8)  # another tensor of the same size
        assert torch.equal(network(other.clone()), network(other.clone()))

"""RMSNorms that run by one kernel give what they gave as they were written."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import embedlm
from embedlm.backbone import norms
from tests.models import DECODERS, ENCODERS, build

TEXTS = ["plants make food from sunlight", "a committee met", "why?"]
PLAIN, FROM_ONE = {"llama", "mistral", "qwen2", "qwen3"}, {"gemma", "gemma2"}


def loaded(name, folder, **options):
    return embedlm.load(build(name, folder), "plain-mean", device="cpu", **options)


@pytest.mark.parametrize("name", sorted({**DECODERS, **ENCODERS}))
def test_vectors_stay_what_they_are(name, tmp_path):
    model = loaded(name, tmp_path / name, attn="sdpa")
    network = model.backbone.network
    for module in network.modules():  # weights that are all alike would hide a wrong one
        if isinstance(getattr(module, "weight", None), nn.Parameter) and module.weight.ndim == 1:
            module.weight.data += torch.linspace(0, 0.5, len(module.weight))
    before = model.encode(TEXTS)
    found = norms.fuse(network)
    assert found or name not in PLAIN | FROM_ONE
    torch.testing.assert_close(model.encode(TEXTS), before, atol=2e-5, rtol=1e-4)


def test_bfloat16_rounds_once(tmp_path):
    model = loaded("qwen3", tmp_path / "m", dtype="bfloat16", attn="sdpa")
    before = model.encode(TEXTS, normalize=True)
    assert norms.fuse(model.backbone.network)
    after = model.encode(TEXTS, normalize=True)
    assert (before * after).sum(1).min() > 0.999


def test_gradients_and_copies_are_as_written(tmp_path):
    network = loaded("llama", tmp_path / "m").backbone.network
    plain = copy.deepcopy(network)
    assert norms.fuse(network)
    assert type(network.norm) is not type(plain.norm)
    assert isinstance(network.norm, type(plain.norm))
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert type(twin.norm) is type(plain.norm)
        assert twin.state_dict().keys() == plain.state_dict().keys()
        x_D = torch.randn(2, 32)
        torch.testing.assert_close(twin.norm(x_D), plain.norm(x_D))
    x_TD = torch.randn(3, 32, requires_grad=True)
    for one in (network, plain):
        one.norm.weight.requires_grad_(True)
        one.norm(x_TD).square().sum().backward()
    assert torch.equal(network.norm.weight.grad, plain.norm.weight.grad)


class Shifted(nn.Module):
    """Looks like an RMSNorm and is none."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x):
        return self.weight * (x - x.mean(-1, keepdim=True))


class Gated(Shifted):
    """Takes another thing beside the states."""

    def forward(self, x, gate):
        return self.weight * x * gate


def test_what_is_no_rms_norm_stays_as_it_is():
    network = nn.ModuleList([Shifted(), Gated(), nn.LayerNorm(8, bias=False), nn.Linear(8, 1)])
    before = [type(module) for module in network]
    assert norms.fuse(network) == 0
    assert [type(module) for module in network] == before

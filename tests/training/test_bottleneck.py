"""Texts rebuilt from their vectors: what the decoder may see, and that the vector learns."""

import numpy as np
import pytest
import torch

import embedlm
from embedlm.schema.tuning import Loss
from embedlm.training import train
from embedlm.training.bottleneck import Bottleneck, backward_bottleneck
from embedlm.training.language import mask_token
from tests.command import sentences
from tests.training.test_runs import a_plan, data  # noqa: F401

TEXTS = sentences(12, seed=4, longest=10)


@pytest.fixture
def model(model_folder):
    recipe = embedlm.Recipe.load("plain-mean").override(
        {"backbone.attention": "bidirectional", "heads": ["dense", {"sparse": {}}]}
    )
    return embedlm.load(model_folder("llama"), recipe, device="cpu")


def test_a_place_sees_the_vector_and_what_is_shown():
    torch.manual_seed(0)
    decoder = Bottleneck(16, 2, 12)
    v, e = torch.randn(1, 16, requires_grad=True), torch.randn(1, 5, 16, requires_grad=True)
    hidden = torch.ones(1, 5, 6, dtype=torch.bool)
    hidden[:, :, 0] = False
    hidden[0, 2, 4] = False  # place 2 is shown token 3
    # Weighted: a plain sum of normalised states is a constant, whatever they saw.
    (decoder(v, e, hidden)[0, 2] @ torch.arange(16.0)).backward()
    assert v.grad.abs().sum() > 1e-3
    assert e.grad[0, 3].abs().sum() > 1e-3
    assert e.grad[0, [0, 1, 2, 4]].abs().sum() == 0


@pytest.mark.parametrize("kind", ["retromae", "tsdae"])
def test_no_token_is_shown_to_its_own_place(model, kind, monkeypatch):
    seen = []
    own = Bottleneck.forward

    def watched(self, v_BD, e_BLD, hidden_BLK):
        seen.append(hidden_BLK)
        return own(self, v_BD, e_BLD, hidden_BLK)

    monkeypatch.setattr(Bottleneck, "forward", watched)
    decoder = Bottleneck(model.backbone.dim, 4, 64)
    options = {"max_length": 64, "budget": 60, "rng": np.random.default_rng(0)}
    backward_bottleneck(model, decoder, TEXTS, Loss(kind=kind), **options)
    assert len(seen) > 1
    shown = 0
    for hidden in seen:
        length = hidden.shape[1]
        assert not hidden[:, :, 0].any(), "the vector is always seen"
        assert hidden[:, torch.arange(length), torch.arange(length) + 1].all()
        later = ~hidden[:, :, 1:].triu(1)
        ahead = torch.ones(length, length).triu(1).bool()
        assert bool((later & ahead).any()) is (kind == "retromae"), "tsdae writes left to right"
        shown += int((~hidden[:, :, 1:]).sum())
    assert shown > 0


@pytest.mark.parametrize("kind", ["retromae", "tsdae"])
def test_packs_change_nothing(model, kind):
    """The loss and its gradient do not depend on how texts are packed (tsdae draws per text)."""
    found = []
    for budget in (30, 4000):
        torch.manual_seed(0)
        decoder = Bottleneck(model.backbone.dim, 4, 64)
        model.backbone.network.zero_grad()
        model.backbone.network.requires_grad_(True)
        options = {"max_length": 64, "budget": budget, "rng": np.random.default_rng(0)}
        loss = backward_bottleneck(model, decoder, TEXTS, Loss(kind=kind), **options)
        gradient = model.backbone.network.layers[0].mlp.up_proj.weight.grad.clone()
        found.append((float(loss), gradient))
    if kind == "tsdae":
        assert found[0][0] == pytest.approx(found[1][0], abs=1e-4)
        torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=1e-3)
    assert all(float(gradient.abs().max()) > 1e-4 for _, gradient in found)


@pytest.mark.parametrize("kind", ["retromae", "tsdae"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_stage_learns_and_leaves_no_decoder(model_folder, data, tmp_path, kind, name):  # noqa: F811
    seen = []
    plan = a_plan(
        model_folder(name),
        (kind, {"optimizer": {"steps": 40, "learning_rate": 3e-3}}),
        change={"backbone.attention": "bidirectional"},
    )
    model = train(plan, tmp_path, data=data, device="cpu", on_event=lambda *a: seen.append(a))
    losses = [values["loss"] for what, values in seen if what == "step"]
    assert losses[-1] < losses[0] - 0.5
    assert not [n for n, _ in model.backbone.network.named_parameters() if "decoder" in n]
    assert mask_token(model.tokenizer) is not None

"""Norms in fewer passes give what networks' own give, and stay what they are."""

import copy
import pickle

import pytest
import torch
from torch import nn

import embedlm
from benchmarks import architectures
from embedlm.backbone import load_backbone, norms
from embedlm.schema.recipe import Backbone
from tests.backbone.test_architectures import saved

DTYPES = [torch.float32, torch.bfloat16]
KINDS = {
    "llama": {"_rounded_first"},
    "qwen3": {"_rounded_first"},
    "t5": {"_rounded_first"},
    "olmo2": {"_rounded_first", "_rounded_last"},
    "gemma3_text": {"_around_one"},
    "llama4_text": {"_rounded_first", None},
    "cohere": {None},
    "bert": {None},
}
"""Networks, and the forms of their norms; None: other norms, which are left alone."""


class Centred(nn.Module):
    """Has what a norm by the root mean square has, and takes the mean off too."""

    def __init__(self, form="centred", width=64):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.eps, self.form_of_it = 1e-5, form

    def forward(self, x):
        if self.form_of_it == "refuses":
            raise ValueError("this is no state")
        if self.form_of_it == "epsilon":
            return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        if self.form_of_it == "pair":
            return x, x
        return nn.functional.layer_norm(x, x.shape[-1:], self.weight, None, self.eps)


def states(width, dtype, rows=7):
    x = torch.randn(1, rows, width, generator=torch.Generator().manual_seed(1))
    return (x * torch.logspace(-3, 2, rows)[:, None]).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_a_network_gives_the_same_states(name, dtype):
    network = architectures.built(name).to(dtype).eval()
    quick = copy.deepcopy(network)
    norms.quicken(quick)
    found = {getattr(m, "quick_form", None) for m in quick.modules() if "Norm" in type(m).__name__}
    assert {form and form.__name__ for form in found} <= KINDS[name]
    assert (found != {None}) == (KINDS[name] != {None})
    assert network.state_dict().keys() == quick.state_dict().keys()
    tolerance = 1e-6 if dtype == torch.float32 else 2e-4
    with torch.no_grad():
        for own, other in zip(network.modules(), quick.modules(), strict=True):
            if isinstance(other, norms._Quick):
                assert isinstance(other, type(own))
                assert type(other).__name__ == type(own).__name__
                x = states(len(own.weight), dtype)
                wanted = own(x).float()
                assert ((other(x).float() - wanted).norm() / wanted.norm()) < tolerance


@pytest.mark.parametrize("form", ["centred", "refuses", "epsilon", "pair"])
def test_what_is_another_norm_is_left_alone(form):
    body = nn.Sequential(Centred(form))
    norms.quicken(body)
    assert type(body[0]) is Centred


@pytest.fixture
def norm():
    network = architectures.built("llama").eval()
    norms.quicken(network)
    assert isinstance(network.norm, norms._Quick)
    return network.norm


def test_with_gradients_in_other_numbers_or_on_no_cpu_the_own_code_runs(norm, monkeypatch):
    x = states(len(norm.weight), torch.float32)
    own = type(norm).quick_kind.forward

    def refuses(*given):
        raise AssertionError("the form ran")

    monkeypatch.setattr(type(norm), "quick_form", staticmethod(refuses))
    found = norm(x.requires_grad_())
    found.sum().backward()
    assert torch.equal(found, own(norm, x))
    assert norm.weight.grad is not None
    with torch.no_grad():
        assert torch.equal(norm.train()(x), found)
        norm.eval()
        assert norm(x.bfloat16()).isfinite().all()
        assert norm.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert norm(x).isfinite().all()
        assert norm.to("meta")(x.to("meta")).device.type == "meta"


def test_copies_and_pickles_are_quick_too(norm):
    x = states(len(norm.weight), torch.float32)
    with torch.no_grad():
        wanted = norm(x)
        for other in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm)), copy.copy(norm)):
            assert type(other) is type(norm)
            assert torch.equal(other(x), wanted)
            assert other.state_dict().keys() == {"weight"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_to_the_last_bit_in_any_company(norm, dtype):
    x = states(len(norm.weight), dtype, rows=300)
    weight_D = norm.weight.to(dtype)
    with torch.inference_mode():
        for form in norms._FORMS:
            whole = form(x, weight_D, 1e-5)
            alone = torch.cat([form(x[:, i : i + 1], weight_D, 1e-5) for i in range(300)], 1)
            assert torch.equal(whole, alone)


@pytest.mark.filterwarnings("ignore")
def test_a_loaded_model_is_saved_as_it_was(tmp_path):
    folder = saved("qwen3", tmp_path / "model")
    backbone = load_backbone(folder, Backbone(attention="native"), dtype="float32", device="cpu")
    assert isinstance(backbone.network.norm, norms._Quick)
    embedlm.load(folder, recipe="plain-mean").save_pretrained(tmp_path / "out")
    first, again = (
        load_backbone(str(x), Backbone(attention="native"), dtype="float32", device="cpu")
        for x in (folder, tmp_path / "out")
    )
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", norms._FORMS)
def test_a_card_s_kernel_gives_what_the_form_gives(form, dtype):
    """The kernels run on CPUs too; they round once where a form may round twice."""
    x, weight_D = states(64, dtype), torch.linspace(-0.5, 1.5, 64).to(dtype)
    wanted = form(x, weight_D, 1e-5).float()
    found = norms._ON_CARD[form](x, weight_D, 1e-5)
    assert found.dtype == dtype
    error = (found.float() - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert error.max() < {torch.float32: 1e-6, torch.bfloat16: 5e-3}[dtype]

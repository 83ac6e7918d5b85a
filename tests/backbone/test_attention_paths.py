"""What holds for every way that attention is computed; a new one is one row in `PATHS`."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

import embedlm
from embedlm.training.trainable import TextRequest, TrainableEmbedder
from tests.models import DECODERS, ENCODERS

TEXTS = ["plants make food from sunlight.", "fox", "the quick brown fox " * 8, "", "a b c", "fox"]
ARCHITECTURES = [*DECODERS, *(name for name in ENCODERS if name != "t5")]
LEAD = "Instruct: retrieve the passages that answer the question.\nQuery: "


class Path:
    """A way to run the network of a folder."""

    attn = "packed"

    def __init__(self, folder, recipe):
        self.model = embedlm.load(folder, recipe, attn=self.attn, device="cpu")

    def __call__(self, texts):
        return self.model.encode(texts)


class Eager(Path):
    attn = "eager"


class Sdpa(Path):
    attn = "sdpa"


class Plain(Path):
    """Packed, with the weights as they are stored."""

    def __call__(self, texts):
        with self.model.executor.fixed("plain"):
            return self.model.encode(texts)


class Compiled(Path):
    """Packed, with compiled layers."""

    def __call__(self, texts):
        with self.model.executor.fixed("on"):
            return self.model.encode(texts)


class SmallPacks(Path):
    """Packed, a few tokens at once."""

    def __call__(self, texts):
        return self.model.encode(texts, batch_tokens=16)


class Recorded(Path):
    """Packed, with a graph for gradients."""

    def __call__(self, texts):
        trained = TrainableEmbedder(self.model, self.model.recipe.heads, budget=4096)
        plan = trained.plan_chunks([TextRequest(tuple(texts), None)])
        return torch.cat([chunk() for chunk in plan.chunks])[plan.order_N].detach().numpy()


PATHS = {
    "eager": Eager,
    "sdpa": Sdpa,
    "packed": Path,
    "plain": Plain,
    "small packs": SmallPacks,
    "recorded": Recorded,
}


@contextmanager
def _whole_precision():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(params=PATHS)
def path(request):
    with _whole_precision():
        yield PATHS[request.param]


def recipe(attention="native", lead="", pooling="mean"):
    prompt = {"default": lead + "{text}"}
    chosen = {"name": "of-a-test", "prompt": prompt, "pooling": {"kind": pooling}}
    return embedlm.Recipe.load({**chosen, "backbone": {"attention": attention}})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_path_gives_the_states_of_plain_attention(path, model_folder, name):
    folder = model_folder(name)
    expected = Eager(folder, recipe())(TEXTS)
    np.testing.assert_allclose(path(folder, recipe())(TEXTS), expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
def test_every_path_looks_where_the_recipe_says(path, model_folder, name, attention):
    folder, texts = model_folder(name), ["plants make food", "plants make light"]
    mean = path(folder, recipe(attention, pooling="mean"))
    count = [len(ids) for ids in mean.model.render(texts).ids]
    last = path(folder, recipe(attention, pooling="last"))(texts)
    # The sum of the states before the last: of tokens that both texts begin with.
    first, changed = np.array(count)[:, None] * mean(texts) - last
    assert count[0] == count[1]
    assert (np.abs(first - changed).max() > 1e-2) == (attention == "bidirectional")


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gpt2"])
def test_company_and_shared_prefixes_change_nothing(path, model_folder, name, pooling):
    run = path(model_folder(name), recipe("causal", LEAD, pooling))
    together = run(TEXTS)
    alone = np.concatenate([run([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_compiled_layers_are_a_path_too(model_folder, name):
    folder = model_folder(name)
    expected = Eager(folder, recipe())(TEXTS)
    np.testing.assert_allclose(Compiled(folder, recipe())(TEXTS), expected, atol=5e-5, rtol=1e-4)

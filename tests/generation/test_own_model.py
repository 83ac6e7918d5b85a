"""A model that writes its own texts is named, and copied, with all that it is made of."""

import pytest

import embedlm
from embedlm.generation import Sampling, resolve_generator
from tests.backbone.test_adapters import make_adapter

CHAT = [{"role": "user", "content": "plants make food"}]
GREEDY = Sampling(temperature=0, max_new_tokens=12)


@pytest.fixture(scope="module")
def adapter(tiny_llama, tmp_path_factory):
    return str(make_adapter(tiny_llama, tmp_path_factory.mktemp("adapters") / "own", seed=1))


def answer(generator):
    return next(generator.generate([CHAT], GREEDY, [0]))


def test_a_model_with_an_adapter_has_a_name_of_its_own(tiny_llama, adapter):
    plain, merged = (
        resolve_generator(embedlm.load(tiny_llama, "plain-last", adapters=one, lm_head=True))
        for one in ([], [adapter])
    )
    assert answer(plain) != answer(merged)
    assert plain.name != merged.name, "or one would be given the other's answers from the cache"
    switchable = embedlm.load(tiny_llama, "plain-last", adapters=[adapter], merge=False)
    assert resolve_generator(switchable).name == plain.name, "the base alone writes"


def test_a_second_copy_has_the_adapters_and_the_device_of_the_first(tiny_llama, adapter):
    both_ways = embedlm.Recipe.load("plain-last").override({"backbone.attention": "bidirectional"})
    model = embedlm.load(tiny_llama, both_ways, adapters=[adapter], lm_head=True, device="cpu")
    copy = resolve_generator(model)
    own = resolve_generator(
        embedlm.load(tiny_llama, "plain-last", adapters=[adapter], lm_head=True)
    )
    assert type(copy) is not type(own)
    assert (answer(copy), copy.name) == (answer(own), own.name)
    assert copy.how["device"] == model.device

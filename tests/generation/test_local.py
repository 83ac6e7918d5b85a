"""Variants written by a real local model."""

import json
import shutil
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import embedlm
from embedlm.errors import GenerationError
from embedlm.generation import Cache, LocalGenerator, Question, Sampling, local, resolve_generator
from embedlm.generation.decoding import (
    Network,
    RunningText,
    _nucleus,
    continue_rows,
    draw,
    in_batches,
)
from embedlm.schema.recipe import Transform
from embedlm.transform import transform_texts
from embedlm.transform.geneol import chats_for

TEXTS = ["plants make food", "the quick brown fox", "light"]
CONFIG = Transform(max_new_tokens=6, demonstrations=1)
ONE = [{"role": "user", "content": "Input: light"}]


@pytest.fixture
def cache(tmp_path):
    with closing(Cache(tmp_path / "cache" / "generations.sqlite")) as store:
        yield store


@pytest.fixture(scope="module")
def writer_folder(tiny_llama, tmp_path_factory):
    """Return a tiny Llama whose window holds prompts with examples."""
    folder = shutil.copytree(tiny_llama, tmp_path_factory.mktemp("writer") / "model")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 4096}))
    return folder


@pytest.fixture
def writer(writer_folder):
    return LocalGenerator.load(str(writer_folder))


def sampling(**options):
    return Sampling(max_new_tokens=8, **options)


@pytest.mark.parametrize("size", [1, 2, 12])
def test_a_local_answer_does_not_depend_on_its_company(writer, size):
    requests = [request for text in TEXTS for request in chats_for(text, CONFIG)]
    chats, seeds = [chat for chat, _ in requests], [seed for _, seed in requests]
    alone = [next(writer.generate([c], sampling(), [s])) for c, s in requests]
    writer.batch_size = size
    assert list(writer.generate(chats, sampling(), seeds)) == alone
    assert next(writer.generate(chats[:1], sampling(), [seeds[0] + 1])) != alone[0]


def test_batches_keep_to_a_budget_of_tokens(writer):
    requests = [request for text in TEXTS for request in chats_for(text, CONFIG)]
    chats, seeds = [chat for chat, _ in requests], [seed for _, seed in requests]
    wanted = list(writer.generate(chats, sampling(), seeds))
    writer.batch_tokens = 400
    assert list(writer.generate(chats, sampling(), seeds)) == wanted


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        ([200, 10, 190, 12], [[0, 2], [3, 1]]),  # long ones apart from short ones
        ([200, 190, 194], [[0, 2, 1]]),
        ([200, 200, 200, 200], [[0, 1, 2], [3]]),  # 4 x (200 + 4) tokens are too many
        ([], []),
    ],
)
def test_rows_of_like_length_are_continued_together(sizes, batches):
    assert in_batches(sizes, new=4, most_tokens=700) == batches


def test_a_dear_step_allows_more_padding():
    sizes = [200, 10, 190, 12]
    assert in_batches(sizes, new=4, most_tokens=900, step=100) == [[0, 2, 3, 1]]


def test_a_card_continues_more_at_once(monkeypatch):
    config = SimpleNamespace(num_hidden_layers=30, hidden_size=576)
    weight = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16)
    model = SimpleNamespace(
        parameters=lambda: iter([weight]), config=SimpleNamespace(get_text_config=lambda: config)
    )
    monkeypatch.setattr(local, "free_memory", lambda device: 40 << 30)
    on_cpu = local._Most()
    small = local._Most.of(model)
    assert small.chats > on_cpu.chats
    assert small.step > on_cpu.step
    assert on_cpu.tokens < small.tokens < 1 << 18
    monkeypatch.setattr(local, "free_memory", lambda device: 1 << 30)
    assert local._Most.of(model).tokens == on_cpu.tokens


def test_answers_come_as_their_batch_is_written_and_in_order_where_asked(writer):
    texts = ["light", "light " * 300, "oil", "oil " * 290]
    chats = [[{"role": "user", "content": text}] for text in texts]
    greedy, seeds = Sampling(0.0, 1.0, 3), [0] * 4
    found = list(writer.as_written(chats, greedy, seeds))
    places = [place for place, _ in found]
    assert ({*places[:2]}, {*places[2:]}) == ({1, 3}, {0, 2})
    assert list(writer.answers(chats, greedy, seeds)) == [dict(found)[at] for at in range(4)]


def test_what_all_rows_begin_with_is_read_once(writer, monkeypatch):
    chats = [[{"role": "user", "content": f"{'long ' * 40}{text}"}] for text in TEXTS]
    wanted = [next(writer.generate([chat], sampling(), [0])) for chat in chats]
    read = []
    step = Network.step
    monkeypatch.setattr(
        Network, "step", lambda self, ids, *given: read.append(ids.shape) or step(self, ids, *given)
    )
    assert list(writer.generate(chats, sampling(), [0] * 3)) == wanted
    (one, shared), (rows, longest) = read[:2]
    assert (one, rows) == (1, 3)
    assert shared > 40 > longest


def test_rows_that_are_over_leave_the_batch(writer, monkeypatch):
    """Three answers end after a token; the fourth goes on alone and is not changed by it."""
    chats = [[{"role": "user", "content": text}] for text in (*TEXTS, "oil")]
    seen = []
    rows = [writer.ids(chat) for chat in chats]
    texts = [writer._text(len(row)) for row in rows]
    for text in texts[:3]:
        text.ended = lambda ids: True
    texts[3].ended = lambda ids: False
    step = Network.step
    monkeypatch.setattr(
        Network, "step", lambda self, ids, *given: seen.append(len(ids)) or step(self, ids, *given)
    )
    continue_rows(writer.network, rows, sampling(temperature=0), [0] * 4, texts)
    assert seen == [4, *[1] * 7]
    alone = [writer._text(len(rows[3]))]
    alone[0].ended = lambda ids: False
    continue_rows(writer.network, rows[3:], sampling(temperature=0), [0], alone)
    assert alone[0].ids == texts[3].ids


def test_greedy_and_nucleus(writer):
    chat = chats_for("light", CONFIG)[0][0]
    greedy = [next(writer.generate([chat], sampling(temperature=0), [s])) for s in (1, 2)]
    assert greedy[0] == greedy[1]
    tiny = [next(writer.generate([chat], sampling(top_p=1e-6), [s])) for s in (1, 2)]
    assert tiny[0] == tiny[1] == greedy[0]


def test_greedy_equals_the_generate_of_transformers(writer):
    chat = chats_for("light", CONFIG)[0][0]
    found = next(writer.generate([chat], sampling(temperature=0), [0]))
    given = writer.tokenizer(writer.prompt(chat), return_tensors="pt")
    ids = writer.model.generate(**given, do_sample=False, max_new_tokens=8)
    new = ids[0, given["input_ids"].shape[1] :]
    wanted = writer.tokenizer.decode(new, skip_special_tokens=True)
    assert found == wanted or (wanted.startswith(found) and found.endswith("\n"))


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_tokens_are_drawn_by_their_probability(top_p):
    probability = torch.tensor([0.1, 0.5, 0.0, 0.1, 0.3])
    streams = [torch.Generator().manual_seed(seed) for seed in range(4000)]
    drawn = draw(probability.log().expand(4000, -1), Sampling(1.0, top_p), streams)
    wanted = probability if top_p == 1 else torch.tensor([0.0, 5 / 8, 0.0, 0.0, 3 / 8])
    found = np.bincount(drawn, minlength=5) / 4000
    np.testing.assert_allclose(found, wanted.numpy(), atol=0.03)
    assert (found[wanted.numpy() == 0] == 0).all()


@pytest.mark.parametrize("size", [1, 255, 256, 257, 5000])
def test_the_token_is_where_the_running_sum_passes_the_number_drawn(size):
    random = torch.Generator().manual_seed(size)
    logits = 6 * torch.randn(300, size, generator=random)
    logits[:, torch.rand(size, generator=random) < 0.3] = -torch.inf
    logits[:, -1 if size % 2 else 0] = 0
    streams = [torch.Generator().manual_seed(seed) for seed in range(300)]
    drawn = draw(logits, Sampling(1.0), streams)
    p = torch.softmax(logits.double(), -1)
    numbers = [
        torch.rand(1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in range(300)
    ]
    # A number within rounding of a token's bound may fall to either side.
    for row, (token, number) in enumerate(zip(drawn, numbers, strict=True)):
        upto = p[row].cumsum(0)
        assert upto[token] - p[row, token] - 1e-5 <= number <= upto[token] + 1e-5
        assert p[row, token] > 0


@pytest.mark.parametrize("temperature", [1e-5, 1e-40, 5e-324])
@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_the_coldest_draw_is_the_likeliest(temperature, top_p):
    logits = 5 * torch.randn(6, 700, generator=torch.Generator().manual_seed(0))
    streams = [torch.Generator().manual_seed(seed) for seed in range(6)]
    assert draw(logits, Sampling(temperature, top_p), streams) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_logits_that_are_no_numbers_draw_nothing(wrong, temperature):
    logits = torch.zeros(2, 400)
    logits[1, 7] = wrong
    streams = [torch.Generator().manual_seed(seed) for seed in range(2)]
    with pytest.raises(GenerationError, match=r"not numbers \(NaN or infinity\)"):
        draw(logits, Sampling(temperature), streams)


def test_a_chat_template_is_used(writer):
    plain = writer.prompt(ONE)
    assert plain == "User: Input: light\nAssistant:"
    writer.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    templated = LocalGenerator(writer.model, writer.tokenizer, "templated")
    assert templated.prompt(ONE) == "<user>Input: light<assistant>"
    assert next(templated.generate([ONE], sampling(), [0])) is not None


def test_a_model_that_thinks_aloud_answers_at_once(writer):
    head = "{% for m in messages %}{{ m.content }}{% endfor %}"
    switch = "{% if enable_thinking is not false %}<think>\n{% endif %}"
    for template, prompt in (
        (head + "<a>" + switch, "Input: light<a>"),
        (head + "<a><think>\n", "Input: light<a><think>\n</think>\n\n"),
    ):
        writer.tokenizer.chat_template = template
        thinking = LocalGenerator(writer.model, writer.tokenizer, "thinking")
        assert thinking.prompt(ONE) == prompt


def test_a_stop_does_not_end_thoughts(writer):
    text = RunningText(writer.tokenizer, set(), lambda ids: False, 1, "\n")
    for token in writer.tokenizer("<think>one\ntwo</think>\n\nthree\nfour")["input_ids"]:
        text.take(token, None)
    assert text.answer().text.strip() == "three"
    assert not text.running


def test_a_plain_question_is_continued_without_the_chat_template(writer):
    chat, greedy = [{"role": "user", "content": "light is"}], sampling(temperature=0)
    lines = next(writer.answers([chat], greedy, [0]))
    plain = next(writer.answers([chat], greedy, [0], plain=True))
    assert plain.prompt_tokens == len(writer.tokenizer("light is")["input_ids"])
    assert lines.prompt_tokens == len(writer.tokenizer("User: light is\nAssistant:")["input_ids"])
    given = writer.tokenizer("light is", return_tensors="pt")
    ids = writer.model.generate(**given, do_sample=False, max_new_tokens=8)
    new = ids[0, given["input_ids"].shape[1] :]
    assert writer.tokenizer.decode(new, skip_special_tokens=True).startswith(plain.text)
    asked = [Question(chat, greedy, plain=plain) for plain in (False, True)]
    assert asked[0].kind != asked[1].kind


def test_a_chat_beyond_the_window_is_left_out(writer, cache, caplog):
    writer.model.config.max_position_embeddings = 300
    long = "light " * 400
    found = transform_texts([long, "light"], CONFIG, writer, cache)
    assert found[0] == [long] * 4
    assert all(variant != long for variant in found[1])
    assert f"{writer.name} wrote nothing for" in caplog.text


def test_a_model_is_known_by_its_contents(writer_folder, tmp_path):
    name = resolve_generator(str(writer_folder)).name
    moved = shutil.copytree(writer_folder, tmp_path / "moved")
    assert resolve_generator(moved).name == name
    weights = next(moved.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert resolve_generator(moved).name != name
    assert resolve_generator("some/hub-id").name == "hub:some/hub-id"


def test_a_stored_model_is_loaded_once_and_only_to_write(writer_folder, cache):
    config = CONFIG.model_copy(update={"max_new_tokens": 3})
    first = resolve_generator(str(writer_folder))
    found = transform_texts(TEXTS, config, str(writer_folder), cache)
    assert resolve_generator(str(writer_folder)) is first
    assert first.loaded is not None
    resolve_generator("some/hub-id")
    assert transform_texts(TEXTS, config, str(writer_folder), cache) == found
    assert resolve_generator(str(writer_folder)).loaded is None


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_an_encoder_cannot_write(model_folder, kind):
    generator = resolve_generator(str(model_folder(kind)))
    with pytest.raises(GenerationError, match="not a causal language model"):
        next(generator.generate([ONE], sampling(), [0]))


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bloom", "gemma3", "mistral-sliding"])
def test_other_architectures_write(model_folder, kind):
    generator = LocalGenerator.load(str(model_folder(kind)))
    chats = [ONE, [{"role": "user", "content": "a much longer input than the other"}]]
    together = list(generator.generate(chats, sampling(), [1, 2]))
    assert together == [
        next(generator.generate([c], sampling(), [s])) for c, s in zip(chats, [1, 2], strict=True)
    ]


# -- in an embedder -------------------------------------------------------------------------------


def own_writer(folder, heads):
    changes = {"transform.max_new_tokens": 4, "transform.demonstrations": 0, "heads": heads}
    return embedlm.load(folder, recipe=embedlm.Recipe.load("geneol").override(changes))


def test_geneol_writes_with_its_own_model(writer_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDLM_CACHE", str(tmp_path))
    model = own_writer(writer_folder, ["dense"])
    assert model.encode(TEXTS).shape == (3, 32)
    assert model.backbone.head is not None, "its head is loaded at once, not a second copy of it"
    late = embedlm.load(writer_folder, recipe="plain-mean")
    assert resolve_generator(late).backbone is late.backbone, "a small head comes with the network"
    headless = late.with_backbone(late.backbone.rebuilt(head=None))
    copy = resolve_generator(headless)
    assert copy is resolve_generator(headless), "one copy serves every call"


def test_a_model_loaded_with_its_head_is_not_copied(writer_folder, cache):
    model = own_writer(writer_folder, ["dense", "sparse"])
    config, backbone = model.recipe.transform, model.backbone
    rows = [[1, 2, 3, 4]]
    before = backbone.run(rows)
    implementation = backbone.implementation
    generator = resolve_generator(model)
    assert generator.backbone is backbone
    found = transform_texts(TEXTS, config, generator, cache)
    assert backbone.implementation == implementation
    torch.testing.assert_close(backbone.run(rows), before)
    assert backbone.logits(before).shape == (4, backbone.vocab_size)
    alone = LocalGenerator.load(str(writer_folder))
    assert alone.name == generator.name
    with closing(Cache(cache.path.with_name("other.sqlite"))) as other:
        assert transform_texts(TEXTS, config, alone, other) == found


def test_a_pass_uses_no_name_that_transformers_gives_up(writer, caplog):
    list(writer.generate([ONE], Sampling(max_new_tokens=3), [0]))
    assert "deprecated" not in caplog.text


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("spread", [0.5, 8.0])
def test_a_nucleus_is_that_of_all_tokens_sorted(top_p, spread):
    """Logits of bfloat16 are often equal; flat ones have a nucleus of nearly all tokens."""
    logits = spread * torch.randn(6, 3000, generator=torch.Generator().manual_seed(0))
    probability = logits.bfloat16().float().softmax(-1)
    found, ids = _nucleus(probability, top_p)
    order = probability.sort(dim=-1, descending=True, stable=True)
    kept = order.values.double().cumsum(-1) - order.values < top_p
    for row in range(6):
        count = int(kept[row].sum())
        assert int((found[row] > 0).sum()) == count
        assert torch.equal(ids[row, :count], order.indices[row, :count])
        assert torch.equal(found[row, :count], order.values[row, :count])


def test_a_loaded_model_s_logits_are_those_of_transformers(writer, writer_folder):
    """Its weights lie in another layout, where products are faster so."""
    reference = AutoModelForCausalLM.from_pretrained(writer_folder, dtype=writer.model.dtype)
    ids = torch.tensor([writer.ids(ONE)])
    with torch.inference_mode():
        wanted = reference(ids).logits[:, -3:]
        found = writer.network.last_logits(ids, torch.ones_like(ids), 3)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_logits_that_are_no_numbers_are_an_error(temperature):
    logits = torch.zeros(2, 9)
    logits[1, 3] = torch.nan
    streams = [torch.Generator().manual_seed(seed) for seed in range(2)]
    with pytest.raises(GenerationError, match="not numbers"):
        draw(logits, Sampling(temperature), streams)

"""Every kind of adapter equals peft itself, merged and switched, is saved and opened again."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
import transformers
from tokenizers import processors

import embedlm
from embedlm.errors import ModelError, UnsupportedError
from embedlm.prompt.segments import SEGMENT_ID
from tests.models import build_tokenizer

peft = pytest.importorskip("peft")

TEXTS = ["plants make food", "the quick brown fox jumps over the lazy dog", "light"]
IN_TEXTS = build_tokenizer()(TEXTS[0])["input_ids"][1:3]


def lora(**options):
    fields = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    return peft.LoraConfig(**{**fields, "init_lora_weights": False, **options})


def make(base, folder, config, **options):
    """Write an adapter whose weights differ from their start; return peft's own model."""
    with warnings.catch_warnings(action="ignore"):  # peft warns of half of what it makes
        return _make(base, folder, config, **options)


def _make(base, folder, config, *, head=False, rows=None, loader=None):
    torch.manual_seed(5)
    loader = loader or (transformers.AutoModelForCausalLM if head else transformers.AutoModel)

    def network():
        plain = loader.from_pretrained(base)
        if rows:
            plain.resize_token_embeddings(rows, mean_resizing=False)
        return plain

    tuned = peft.get_peft_model(network(), config)
    with torch.no_grad():
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.05)
    tuned.save_pretrained(folder)
    if getattr(config, "init_lora_weights", False) in ("pissa", "olora"):
        return tuned.eval()
    return peft.PeftModel.from_pretrained(network(), folder).eval()


def means(network, tokenizer):
    """Return the mean of the last states of each text."""
    vectors = []
    for text in TEXTS:
        with torch.no_grad():
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            states = network(ids, output_hidden_states=True).hidden_states[-1]
        vectors.append(states[0].mean(0).numpy())
    return np.array(vectors)


KINDS = {
    "rslora": (lora(use_rslora=True), {}),
    "dora": (lora(use_dora=True), {}),
    "layers": (lora(layers_to_transform=[1], layers_pattern="layers"), {}),
    "patterns": (lora(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 16}), {}),
    "linear": (lora(target_modules="all-linear"), {}),
    "embeddings": (lora(target_modules=["embed_tokens", "q_proj"]), {}),
    "parameters": (lora(target_modules=[], target_parameters=["self_attn.q_proj.weight"]), {}),
    "saved norm": (lora(modules_to_save=["norm"]), {}),
    "saved table": (lora(modules_to_save=["embed_tokens"]), {}),
    "saved head": (lora(modules_to_save=["embed_tokens", "lm_head"]), {"head": True}),
    "tokens": (lora(trainable_token_indices=IN_TEXTS), {}),
    "new rows": (lora(), {"rows": 404}),
    "new rows of a head": (lora(), {"rows": 404, "head": True}),
    "loha": (peft.LoHaConfig(r=4, target_modules=["q_proj"], init_weights=False), {}),
    "lokr": (peft.LoKrConfig(r=4, target_modules=["q_proj"], init_weights=False), {}),
    "oft": (peft.OFTConfig(r=0, oft_block_size=8, target_modules=["q_proj"]), {}),
    "ia3": (
        peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        {},
    ),
    "norms": (peft.LNTuningConfig(target_modules=["input_layernorm"]), {}),
    "tokens alone": (
        peft.TrainableTokensConfig(token_indices=IN_TEXTS, target_modules=["embed_tokens"]),
        {},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_equals_peft_merged_and_switched(tiny_llama, tmp_path, kind):
    config, options = KINDS[kind]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    reference = means(make(tiny_llama, tmp_path / "one", config, **options), tokenizer)
    base = embedlm.load(tiny_llama, "plain-mean").encode(TEXTS)
    assert np.abs(reference - base).max() > 1e-3
    for merge in (True, False):
        adapters = [str(tmp_path / "one")]
        model = embedlm.load(tiny_llama, "plain-mean", adapters=adapters, merge=merge)
        vectors = model.encode(TEXTS)
        np.testing.assert_allclose(vectors, reference, atol=1e-5)
        model.save_pretrained(tmp_path / "saved")
        again = embedlm.load(tmp_path / "saved")
        assert again.adapters == (() if merge else ("one",))
        # sentence-transformers would read a switchable adapter's base alone.
        assert (tmp_path / "saved" / "modules.json").is_file() is merge
        np.testing.assert_allclose(again.encode(TEXTS), vectors, atol=1e-6)
        shutil.rmtree(tmp_path / "saved")
    np.testing.assert_allclose(model.encode(TEXTS, adapter=None), base, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        lora(init_lora_weights="pissa"),
        lora(init_lora_weights="olora"),
        lora(bias="all", target_modules=["c_attn"], fan_in_fan_out=True),
        lora(bias="lora_only", target_modules=["c_attn"], fan_in_fan_out=True),
    ],
    ids=["pissa", "olora", "bias all", "bias lora_only"],
)
def test_what_changes_the_base_is_merged_and_never_switched(
    tiny_llama, model_folder, tmp_path, config
):
    base = model_folder("gpt2") if config.fan_in_fan_out else tiny_llama
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    reference = means(make(base, tmp_path / "one", config), tokenizer)
    adapters = [str(tmp_path / "one")]
    merged = embedlm.load(base, "plain-mean", adapters=adapters)
    np.testing.assert_allclose(merged.encode(TEXTS), reference, atol=1e-5)
    with pytest.raises(UnsupportedError, match="load it with merge=True"):
        embedlm.load(base, "plain-mean", adapters=adapters, merge=False)


TIED = {
    "table": {"target_modules": ["embed_tokens"]},
    "head": {"target_modules": ["lm_head"]},
    "both": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "tokens": {"trainable_token_indices": IN_TEXTS},
    "saved": {"modules_to_save": ["embed_tokens"]},
}


@pytest.mark.parametrize("kind", TIED)
def test_a_table_that_the_head_shares_is_merged_apart(model_folder, tmp_path, kind):
    base = model_folder("llama", tie_word_embeddings=True)
    reference = make(base, tmp_path / "one", lora(**TIED[kind]), head=True)
    model = embedlm.load(base, "splade-causal", adapters=[str(tmp_path / "one")])
    model.save_pretrained(tmp_path / "saved")
    for opened in (model, embedlm.load(tmp_path / "saved")):
        found = opened.encode(TEXTS).sparse.toarray()
        batch = opened.render(TEXTS)
        for ids, marks, row in zip(batch.ids, batch.segments, found, strict=True):
            with torch.no_grad():
                logits = reference(torch.tensor([ids])).logits[0]
            wanted = torch.log1p(torch.relu(logits[marks == SEGMENT_ID["repeat"]])).amax(0).numpy()
            np.testing.assert_allclose(row[row > 0], wanted[row > 0], atol=1e-5)


def test_a_table_that_other_layers_share_is_not_merged(model_folder, tmp_path):
    base = model_folder("t5")
    torch.manual_seed(5)
    plain = transformers.T5EncoderModel.from_pretrained(base)
    peft.get_peft_model(plain, lora(target_modules=["shared"])).save_pretrained(tmp_path / "one")
    adapters = [str(tmp_path / "one")]
    with pytest.raises(UnsupportedError, match=r"embed_tokens.* shares the weights of shared"):
        embedlm.load(base, "plain-mean", adapters=adapters)
    switched = embedlm.load(base, "plain-mean", adapters=adapters, merge=False)
    assert switched.encode(TEXTS).shape == (3, 32)


def test_what_cannot_be_merged_is_switched(tiny_llama, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    reference = means(make(tiny_llama, tmp_path / "one", lora(lora_bias=True)), tokenizer)
    adapters = [str(tmp_path / "one")]
    switched = embedlm.load(tiny_llama, "plain-mean", adapters=adapters, merge=False)
    np.testing.assert_allclose(switched.encode(TEXTS), reference, atol=1e-5)
    with pytest.raises(UnsupportedError, match="load it with merge=False"):
        embedlm.load(tiny_llama, "plain-mean", adapters=adapters)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
        ({"use_qalora": True}, "use_qalora"),
        ({"an_option_of_2030": 7}, "an_option_of_2030"),
        ({"init_lora_weights": "corda"}, "corda"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING"),
        ({"peft_type": "VERA"}, "VERA"),
        ({"peft_type": None}, "peft_type"),
        ({"r": "four"}, "does not fit"),
        ({"target_modules": ["no_such_layer"]}, "no_such_layer"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(tiny_llama, tmp_path, changes, told):
    make(tiny_llama, tmp_path / "one", lora())
    edit(tmp_path / "one", **changes)
    for merge in (True, False):
        with pytest.raises(ModelError, match=told):
            embedlm.load(tiny_llama, "plain-mean", adapters=[str(tmp_path / "one")], merge=merge)


def edit(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": 3}, "names no base model"),
        ({"base_model_name_or_path": "/no/such/base"}, "'/no/such/base', which is no folder here"),
        ({"revision": "v2"}, "revision 'v2'"),
    ],
)
def test_a_base_that_is_not_there_is_told(tiny_llama, tmp_path, changes, told):
    make(tiny_llama, tmp_path / "one", lora())
    edit(tmp_path / "one", **changes)
    with pytest.raises(ModelError, match=told):
        embedlm.load(tmp_path / "one", "plain-mean")


# -- tokenizers --------------------------------------------------------------------------------


def closing():
    """Return a tokenizer that closes every text with its EOS, which the base's does not."""
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_is_read_by_its_own_tokenizer(tiny_llama, tmp_path, merge):
    network = make(tiny_llama, tmp_path / "one", lora())
    closing().save_pretrained(tmp_path / "one")
    model = embedlm.load(tmp_path / "one", "plain-mean", merge=merge)
    assert model.render(TEXTS[:1]).ids[0][-1] == 2
    np.testing.assert_allclose(model.encode(TEXTS), means(network, closing()), atol=1e-5)
    model.save_pretrained(tmp_path / "saved")
    again = embedlm.load(tmp_path / "saved").encode(TEXTS)
    np.testing.assert_allclose(again, model.encode(TEXTS), atol=1e-6)


@pytest.mark.parametrize("merge", [True, False])
def test_new_tokens_come_with_their_rows(tiny_llama, tmp_path, merge):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.add_tokens(["quick brown", "<new>"])
    network = make(tiny_llama, tmp_path / "one", lora(), rows=len(tokenizer))
    tokenizer.save_pretrained(tmp_path / "one")
    model = embedlm.load(tmp_path / "one", "plain-mean", merge=merge)
    assert len(tokenizer) - 2 in model.render(TEXTS).ids[1]
    np.testing.assert_allclose(model.encode(TEXTS), means(network, tokenizer), atol=1e-5)
    model.save_pretrained(tmp_path / "saved")
    again = embedlm.load(tmp_path / "saved").encode(TEXTS)
    np.testing.assert_allclose(again, model.encode(TEXTS), atol=1e-6)


def test_a_token_without_a_row_is_refused(tiny_llama, tmp_path):
    make(tiny_llama, tmp_path / "one", lora())
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path / "one")
    with pytest.raises(ModelError, match=r"'<new>'.*row of embeddings"):
        embedlm.load(tmp_path / "one", "plain-mean")


def test_adapters_of_different_tokenizers_are_refused_together(tiny_llama, tmp_path):
    for name, tokenizer in (("a", build_tokenizer()), ("b", closing()), ("c", None)):
        make(tiny_llama, tmp_path / name, lora())
        if tokenizer is not None:
            tokenizer.save_pretrained(tmp_path / name)

    def load(*names, merge):
        adapters = [str(tmp_path / name) for name in names]
        return embedlm.load(tiny_llama, "plain-mean", adapters=adapters, merge=merge)

    for merge in (True, False):
        with pytest.raises(ModelError, match="different tokenizers"):
            load("a", "b", merge=merge)
    with pytest.raises(ModelError, match="different tokenizers"):
        load("b", "c", merge=False)  # the one without is for the base's
    assert load("a", "c", merge=False).adapters == ("a", "c")


# -- saved and opened again --------------------------------------------------------------------


@pytest.mark.parametrize("merge", [True, False])
def test_adapters_of_a_recipe_are_not_applied_twice(tiny_llama, tmp_path, merge):
    make(tiny_llama, tmp_path / "one", lora())
    changes = {"backbone.adapters": [str(tmp_path / "one")], "backbone.merge": merge}
    model = embedlm.load(tiny_llama, embedlm.Recipe.load("plain-mean").override(changes))
    vectors = model.encode(TEXTS)
    model.save_pretrained(tmp_path / "saved")
    shutil.rmtree(tmp_path / "one")
    np.testing.assert_allclose(embedlm.load(tmp_path / "saved").encode(TEXTS), vectors, atol=1e-6)


def test_a_switchable_adapter_is_saved_beside_a_head(tiny_llama, tmp_path):
    make(tiny_llama, tmp_path / "one", lora(modules_to_save=["lm_head"]), head=True)
    recipe = embedlm.Recipe.load("plain-last").override({"heads": ["dense", "sparse"]})
    adapters = [str(tmp_path / "one")]
    model = embedlm.load(tiny_llama, recipe, adapters=adapters, merge=False)
    first = model.encode(TEXTS)
    model.save_pretrained(tmp_path / "saved")
    again = embedlm.load(tmp_path / "saved").encode(TEXTS)
    np.testing.assert_allclose(again.dense, first.dense, atol=1e-6)
    np.testing.assert_allclose(again.sparse.toarray(), first.sparse.toarray(), atol=1e-5)


def test_a_folder_of_sentence_transformers_may_hold_an_adapter(tiny_llama, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    body = Transformer(str(tiny_llama))
    theirs = SentenceTransformer(modules=[body, Pooling(32, "mean"), Normalize()], device="cpu")
    theirs.save(str(tmp_path / "st"), create_model_card=False)
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "st" / name).unlink()
    torch.manual_seed(1)
    peft.get_peft_model(theirs[0].model, lora()).save_pretrained(tmp_path / "st")
    model = embedlm.load(tmp_path / "st")
    np.testing.assert_allclose(model.encode(TEXTS), theirs.encode(TEXTS), atol=1e-6)


@pytest.mark.parametrize("change", [{"r": 1 << 30}, {"rank_pattern": {"q_proj": 1 << 30}, "r": 2}])
@pytest.mark.parametrize(
    "config", [lora(), peft.LoHaConfig(r=4, target_modules=["q_proj"], init_weights=False)]
)
def test_a_rank_that_the_weights_do_not_have_takes_no_memory(tiny_llama, tmp_path, config, change):
    make(tiny_llama, tmp_path / "own", config)
    file = tmp_path / "own" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ModelError, match=r"the rank \(r, rank_pattern\) is .*1073741824"):
        embedlm.load(tiny_llama, "plain-mean", adapters=[str(tmp_path / "own")], device="cpu")

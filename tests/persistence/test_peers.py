"""Folders that sentence-transformers writes, read as it reads them itself."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, SparseEncoder, models
from sentence_transformers.sparse_encoder.models import MLMTransformer, SpladePooling
from torch import nn

import embedlm
from embedlm.errors import EmbedLMError, ModelError, UnsupportedError
from embedlm.persistence.modules import POOLINGS
from embedlm.readout.projection import ACTIVATIONS
from tests.models import build
from tests.persistence.peers import TEXTS, alike, alike_and_again, change, close

SETTINGS = "config_sentence_transformers.json"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {name: build(name, folder / name) for name in ("bert", "llama")}


@pytest.fixture
def saved(bases, tmp_path):
    """Return a function that saves a SentenceTransformer and returns it, opened again."""

    def saved(*further, arch="bert", pooling="mean", include_prompt=True, **options):
        transformer = models.Transformer(str(bases[arch]))
        pool = models.Pooling(32, pooling, include_prompt=include_prompt)
        peer = SentenceTransformer(modules=[transformer, pool, *further], device="cpu", **options)
        peer.save(str(tmp_path / "theirs"), create_model_card=False)
        return SentenceTransformer(str(tmp_path / "theirs"), device="cpu"), tmp_path / "theirs"

    return saved


# -- pooling -----------------------------------------------------------------------------------

ALL = [names[0] for names in POOLINGS.values()]
JOINED = [["cls", "mean"], ["lasttoken", "cls"], ["mean", "mean"], ALL, ["weightedmean"]]


@pytest.mark.parametrize(
    ("pooling", "arch", "include_prompt"),
    [
        *((pooling, arch, False) for pooling in ALL for arch in ("bert", "llama")),
        *((pooling, "bert", pooling != ALL) for pooling in JOINED),
    ],
    ids=str,
)
def test_poolings(saved, pooling, arch, include_prompt):
    prompts = {"query": "find this: ", "document": ""}
    peer, folder = saved(arch=arch, pooling=pooling, include_prompt=include_prompt, prompts=prompts)
    alike_and_again(peer, folder)


def test_poolings_by_the_flags_of_older_versions(saved):
    _, folder = saved()
    flags = {flag: kind != "weighted_mean" for kind, (_, flag) in POOLINGS.items()}
    file = folder / "1_Pooling" / "config.json"
    file.write_text(json.dumps({"word_embedding_dimension": 32, **flags}))
    model = alike(SentenceTransformer(str(folder), device="cpu"), folder)
    assert model.dim == 5 * 32


def test_a_projection_of_joined_poolings(saved):
    peer, folder = saved(models.Dense(64, 12), models.Normalize(), pooling=["cls", "mean"])
    alike_and_again(peer, folder)


@pytest.mark.parametrize("width", [16, 64])
def test_a_pooling_of_another_width_than_the_states_is_refused(saved, width):
    _, folder = saved()
    change(folder, "1_Pooling/config.json", embedding_dimension=width)
    told = rf"1_Pooling.config\.json: embedding_dimension is {width}, .* 32"
    with pytest.raises(EmbedLMError, match=told):
        embedlm.load(folder, device="cpu")


# -- layers after the pooling ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bias"), [(name, index % 2 == 0) for index, name in enumerate(ACTIVATIONS)]
)
def test_activations(saved, name, bias):
    torch.manual_seed(0)
    layer = models.Dense(32, 12, bias=bias, activation_function=ACTIVATIONS[name]())
    if name == "PReLU":
        nn.init.constant_(layer.activation_function.weight, 0.7)
    peer, folder = saved(layer)
    (alike_and_again if name == "PReLU" else alike)(peer, folder)


@pytest.mark.parametrize("path", ["torch.nn.Softmax", "torch.evil.Tanh", "os.system", None, 3])
def test_activations_that_are_not_known(saved, path):
    _, folder = saved(models.Dense(32, 12))
    change(folder, "2_Dense/config.json", activation_function=path)
    with pytest.raises(UnsupportedError, match=r"2_Dense.config\.json: activation_function is"):
        embedlm.load(folder, device="cpu")


@pytest.mark.parametrize("width", [6, 32])
def test_a_residual(saved, width):
    peer, folder = saved(models.Dense(32, width, use_residual=True), models.Normalize())
    alike_and_again(peer, folder)


@pytest.mark.parametrize(
    "module",
    [
        lambda: models.Dense(32, 32, module_input_name="token_embeddings"),
        lambda: models.Dense(32, 32, module_output_name="other"),
        lambda: models.Normalize(module_input_name="token_embeddings"),
    ],
)
def test_modules_that_are_refused(saved, module):
    _, folder = saved(module())
    with pytest.raises(UnsupportedError, match=r"module_(in|out)put_name is"):
        embedlm.load(folder, device="cpu")


@pytest.mark.parametrize(
    "kind",
    [
        *("WordEmbeddings", "BoW", "CNN", "LSTM"),
        *("CLIPModel", "WordWeights", "SparseAutoEncoder"),
        "HierarchicalTokenPooling",
    ],
)
def test_modules_that_no_recipe_expresses_are_named(saved, kind):
    _, folder = saved()
    listing = json.loads((folder / "modules.json").read_text())
    listing[0]["type"] = f"sentence_transformers.models.{kind}"
    (folder / "modules.json").write_text(json.dumps(listing))
    with pytest.raises(UnsupportedError, match=rf"modules\.json has the module .*{kind}"):
        embedlm.load(folder, device="cpu")


@pytest.mark.parametrize("arch", ["bert", "llama"])
@pytest.mark.parametrize("first", [0, 2])
def test_a_mean_of_layers(model_folder, tmp_path, arch, first):
    folder = tmp_path / "theirs"
    network = models.Transformer(model_folder(arch), config_kwargs={"output_hidden_states": True})
    count = network.model.config.num_hidden_layers
    layers = models.WeightedLayerPooling(32, count, first)
    modules = [network, layers, models.Pooling(32, "mean"), models.Dense(32, 12)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    peer = SentenceTransformer(str(folder), device="cpu")
    model = alike(peer, folder)
    assert model.recipe.pooling.layer == tuple(range(first, count + 1))
    model.save_pretrained(tmp_path / "ours")
    close(embedlm.load(tmp_path / "ours", device="cpu").encode(TEXTS), peer.encode(TEXTS))
    place = folder / "1_WeightedLayerPooling"
    weights = load_file(place / "model.safetensors")["layer_weights"]
    save_file({"layer_weights": 0.5 * weights}, place / "model.safetensors")
    alike(SentenceTransformer(str(folder), device="cpu"), folder)
    weights[-1] = 3
    save_file({"layer_weights": weights}, place / "model.safetensors")
    with pytest.raises(UnsupportedError, match=r"weighs layers by .*, 3; .* all the same"):
        embedlm.load(folder, device="cpu")
    save_file({"layer_weights": weights[1:].clone()}, place / "model.safetensors")
    with pytest.raises(ModelError, match="does not hold layer_weights, one for each of the layers"):
        embedlm.load(folder, device="cpu")
    change(folder, "config.json", output_hidden_states=False)  # there it has no layers to read
    save_file({"layer_weights": weights}, place / "model.safetensors")
    alike(SentenceTransformer(str(folder), device="cpu"), folder)


def test_a_layer_norm(saved):
    norm = models.LayerNorm(32)
    with torch.no_grad():
        norm.norm.weight.uniform_(0.5, 2)
        norm.norm.bias.uniform_()
    peer, folder = saved(norm, models.Dense(32, 12), models.LayerNorm(12), models.Normalize())
    alike_and_again(peer, folder)
    change(folder, "2_LayerNorm/config.json", dimension=31)
    with pytest.raises(ModelError, match=r"takes vectors of width 31, .* gives 32"):
        embedlm.load(folder, device="cpu")


def test_a_network_in_a_folder_of_its_own(saved):
    """As versions before 2 wrote it."""
    peer, folder = saved(models.Dense(32, 12), prompts={"query": "q: "})
    change(folder, "sentence_bert_config.json", max_seq_length=8, do_lower_case=True)
    peer = SentenceTransformer(str(folder), device="cpu")
    own = folder / "0_Transformer"
    own.mkdir()
    top = {"modules.json", "config_sentence_transformers.json", "README.md"}
    for file in [path for path in folder.iterdir() if path.is_file() and path.name not in top]:
        shutil.move(file, own / file.name)
    listing = json.loads((folder / "modules.json").read_text())
    listing[0]["path"] = own.name
    (folder / "modules.json").write_text(json.dumps(listing))
    model = alike_and_again(peer, folder)
    assert (model.max_length, model.recipe.prompt.clean) == (8, "lower")
    close(*(embedlm.load(one, "plain-last", device="cpu").encode("x") for one in (folder, own)))


# -- widths and similarities -------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
def test_a_width_of_the_folder(saved, normalize):
    further = [models.Normalize()] if normalize else []
    peer, folder = saved(*further, truncate_dim=8)
    model = alike_and_again(peer, folder)
    assert (model.dim, model.recipe.dim) == (8, 8)
    close(model.encode(TEXTS, dim=5), peer.encode(TEXTS, truncate_dim=5))
    close(model.encode(TEXTS, truncate_dim=5), peer.encode(TEXTS, truncate_dim=5))
    unit = {"normalize_embeddings": True}
    close(model.encode(TEXTS, **unit), peer.encode(TEXTS, **unit))
    close(model.as_sentence_transformer().encode(TEXTS), peer.encode(TEXTS))
    with pytest.raises(UnsupportedError, match=r"dim 33, .* allowed: 1 to 32"):
        embedlm.load(folder, model.recipe.override({"dim": 33}), device="cpu")


def test_a_width_of_a_recipe_is_normalised_again(bases, tmp_path):
    base = {"name": "cut", "pooling": {"kind": "mean"}, "normalize": True}
    whole = embedlm.load(bases["bert"], base, device="cpu")
    model = embedlm.load(bases["bert"], {**base, "dim": 8}, device="cpu")
    vectors = model.encode(TEXTS)
    np.testing.assert_array_equal(vectors, whole.encode(TEXTS, dim=8))
    close(np.linalg.norm(vectors, axis=1), 1)
    close(
        model.as_sentence_transformer()(model.as_sentence_transformer().preprocess(TEXTS))[
            "sentence_embedding"
        ].detach(),
        vectors,
    )
    model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "modules.json").exists()
    np.testing.assert_array_equal(embedlm.load(tmp_path / "saved").encode(TEXTS), vectors)


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarities(saved, name):
    peer, folder = saved(similarity_fn_name=name)
    model = alike_and_again(peer, folder)
    vectors = model.encode(TEXTS)
    close(model.similarity(vectors, vectors[:2]), peer.similarity(vectors, vectors[:2]))


def test_lower_case_letter_by_letter(saved):
    _, folder = saved(prompts={"query": "FIND ΟΔΟΣ: "})
    change(folder, "sentence_bert_config.json", do_lower_case=True)
    peer = SentenceTransformer(str(folder), device="cpu")
    alike(peer, folder, [*TEXTS, "ΟΔΟΣ", "İstanbul ẞ"])


def test_prompts_are_literal(saved):
    prompts = {"query": "{text} {?x} }{ ", "document": "{{eos}}", "a b.c": "{instruction}:"}
    peer, folder = saved(prompts=prompts)
    model = alike_and_again(peer, folder)
    close(model.encode(TEXTS, role="a b.c"), peer.encode(TEXTS, prompt_name="a b.c"))


# -- sparse ------------------------------------------------------------------------------------


def sparse(bases, folder, pooling, **options):
    modules = [MLMTransformer(str(bases["bert"])), pooling]
    peer = SparseEncoder(modules=modules, device="cpu", **options)
    peer.save(str(folder), create_model_card=False)
    return SparseEncoder(str(folder), device="cpu")


def alike_sparse(peer, folder):
    model = embedlm.load(folder, device="cpu")
    for name in ("encode", "encode_query"):
        found = getattr(model, name)(TEXTS).sparse
        close(found.toarray(), getattr(peer, name)(TEXTS).to_dense().numpy())
    return model


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("strategy", "activation", "similarity"),
    [
        ("max", "relu", "dot"),
        ("sum", "log1p_relu", "cosine"),
        ("max", "log1p_relu", "euclidean"),
        ("sum", "relu", "manhattan"),
    ],
)
def test_sparse_settings(bases, tmp_path, strategy, activation, similarity):
    pooling = SpladePooling(strategy, activation_function=activation)
    prompts = {"query": "query: "}
    options = {"similarity_fn_name": similarity, "max_active_dims": 20, "prompts": prompts}
    peer = sparse(bases, tmp_path / "theirs", pooling, **options)
    model = alike_sparse(peer, tmp_path / "theirs")
    theirs = peer.encode(TEXTS)
    ours = model.encode(TEXTS)
    # Their distances are differences of squares in float32.
    close(model.similarity(ours, ours), peer.similarity(theirs, theirs), atol=0.05)
    pairs = peer.similarity_pairwise(theirs, theirs.to_dense().flip(0).to_sparse())
    flipped = embedlm.load(tmp_path / "theirs").encode(TEXTS[::-1])
    close(model.similarity_pairwise(ours, flipped), pairs)
    model.save_pretrained(tmp_path / "ours")
    alike_sparse(SparseEncoder(str(tmp_path / "ours"), device="cpu"), tmp_path / "ours")


@pytest.mark.parametrize(
    ("file", "keys", "told"),
    [
        (SETTINGS, {"truncate_dim": 8}, "truncate_dim is 8, and only a SentenceTransformer"),
        (SETTINGS, {"model_type": "SentenceTransformer"}, "model_type is 'SentenceTransformer'"),
        (SETTINGS, {"similarity_fn_name": "maxsim"}, "similarity_fn_name compares token"),
        ("sentence_bert_config.json", {"transformer_task": "feature-extraction"}, "need logits"),
    ],
)
def test_sparse_settings_that_do_not_fit(bases, tmp_path, file, keys, told):
    sparse(bases, tmp_path / "theirs", SpladePooling())
    change(tmp_path / "theirs", file, **keys)
    with pytest.raises(UnsupportedError, match=told):
        embedlm.load(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"max_active_dims": 9}, "max_active_dims is 9, and only a SparseEncoder"),
        ({"model_type": "SparseEncoder"}, "model_type is 'SparseEncoder'"),
        ({"similarity_fn_name": "maxsim"}, "similarity_fn_name compares token"),
    ],
)
def test_dense_settings_that_do_not_fit(saved, keys, told):
    _, folder = saved()
    change(folder, SETTINGS, **keys)
    with pytest.raises(UnsupportedError, match=told):
        embedlm.load(folder)


# -- LLM2Vec -----------------------------------------------------------------------------------


def by_words(text, count, most, longest):
    """Cut a text as McGill-NLP/llm2vec's `_convert_to_str` does."""
    length = min(count(text), longest)
    while length > most:
        words = text.split()
        text = " ".join(words[: int(len(words) * (most / length))])
        length = min(count(text), longest)
    return text


def test_doc_max_length_of_llm2vec(bases, tmp_path):
    folder = shutil.copytree(bases["llama"], tmp_path / "model")
    (folder / "llm2vec_config.json").write_text(
        json.dumps({"pooling_mode": "mean", "max_length": 60, "doc_max_length": 40})
    )
    model = embedlm.load(folder, device="cpu")
    short, long = "a  short text", "plants  make food from sunlight " * 30
    tokenizer = model.tokenizer.backend_tokenizer

    def count(text):
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    cut = by_words(long, count, 40, 60)
    assert 30 < count(cut) <= 40
    rendered = model.render([short, long], instruction="say")
    assert rendered.text == [f"say {short}", f"say {cut}"]
    (folder / "llm2vec_config.json").write_text("{}")
    assert embedlm.load(folder, device="cpu").recipe.prompt.text_length == 400


# -- the side that is cut ------------------------------------------------------------------------

TOKENIZER = "tokenizer_config.json"
LONG = [f"{'members asked why the court ruled. ' * 4}{end}" for end in ("roots", "light", "a law")]


@pytest.mark.parametrize("arch", ["bert", "llama"])
def test_texts_are_cut_on_the_left(saved, arch):
    prompts = {"query": "search query: ", "document": "doc: "}
    _, folder = saved(arch=arch, prompts=prompts)
    right = embedlm.load(folder, device="cpu", max_length=10).encode(LONG)
    change(folder, TOKENIZER, truncation_side="left", model_max_length=10)
    peer = SentenceTransformer(str(folder), device="cpu")
    model = alike_and_again(peer, folder, [*LONG, "light"])
    assert model.recipe.prompt.truncation_side == "left"
    assert np.abs(model.encode(LONG) - right).max() > 1e-3
    again = embedlm.load(folder.parent / "ours", device="cpu")
    np.testing.assert_array_equal(again.encode(LONG), model.encode(LONG))


def test_a_left_side_with_prompts_left_out_is_refused(saved):
    _, folder = saved(include_prompt=False, prompts={"query": "search query: "})
    change(folder, TOKENIZER, truncation_side="left")
    with pytest.raises(UnsupportedError, match=r"truncation_side is left.*include_prompt"):
        embedlm.load(folder, device="cpu")


def test_the_side_of_the_tokenizers_rules_counts_where_no_other_is_named(saved):
    _, folder = saved(prompts={"query": "search query: "})
    change(folder, TOKENIZER, model_max_length=10)
    rules = {"direction": "Left", "max_length": 99, "strategy": "LongestFirst", "stride": 0}
    change(folder, "tokenizer.json", truncation=rules)
    peer = SentenceTransformer(str(folder), device="cpu")
    model = alike_and_again(peer, folder, LONG)
    assert model.recipe.prompt.truncation_side == "left"
    change(folder, TOKENIZER, truncation_side="right")
    model = embedlm.load(folder, device="cpu")
    assert model.recipe.prompt.truncation_side == "right"
    close(SentenceTransformer(str(folder), device="cpu").encode(LONG), model.encode(LONG))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("query_length", 8),
        ("document_length", 8),
        ("query_expansion", {"strategy": "fixed", "length": 8}),
    ],
)
def test_a_length_of_one_role_is_refused_where_it_would_be_dropped(saved, key, value):
    _, folder = saved()
    change(folder, "sentence_bert_config.json", **{key: value})
    with pytest.raises(UnsupportedError, match=f"{key}.*max_seq_length"):
        embedlm.load(folder, device="cpu")
    change(folder, "sentence_bert_config.json", **{key: None})
    embedlm.load(folder, device="cpu")


def test_a_side_that_there_is_not_is_refused(saved):
    _, folder = saved()
    change(folder, TOKENIZER, truncation_side="middle")
    with pytest.raises(EmbedLMError, match="truncation_side"):
        embedlm.load(folder, device="cpu")


def test_the_saved_tokenizer_cuts_as_the_recipe_does(saved):
    _, folder = saved()
    change(folder, TOKENIZER, truncation_side="left", model_max_length=10)
    model = embedlm.load(folder, "plain-mean", device="cpu")
    model.save_pretrained(folder.parent / "ours")
    peer = SentenceTransformer(str(folder.parent / "ours"), device="cpu")
    close(peer.encode(LONG), model.encode(LONG))


@pytest.mark.parametrize(("key", "value"), [("return_dict", False), ("chunk_size_feed_forward", 2)])
def test_how_a_network_hands_its_states_over_changes_nothing(saved, key, value):
    peer, folder = saved()
    vectors = peer.encode(TEXTS)
    change(folder, "config.json", **{key: value})
    close(embedlm.load(folder, device="cpu").encode(TEXTS), vectors)


# -- lengths and numbers of sentence_bert_config.json ------------------------------------------

VERY_LONG = ["the quick brown fox " * 60 + "end", "x"]
BERT_FILE = "sentence_bert_config.json"


@pytest.mark.parametrize(("arch", "most"), [("bert", 230), ("llama", 400)])
def test_a_length_above_what_the_other_files_say(saved, arch, most, tmp_path):
    _, folder = saved(arch=arch)
    change(folder, BERT_FILE, max_seq_length=most)
    change(folder, TOKENIZER, model_max_length=50)
    model = alike(SentenceTransformer(str(folder), device="cpu"), folder, VERY_LONG)
    assert model.max_length == most == len(model.render(VERY_LONG).ids[0])
    model.save_pretrained(tmp_path / "ours")
    again = embedlm.load(tmp_path / "ours", device="cpu")
    close(again.encode(VERY_LONG), model.encode(VERY_LONG))
    # A method's own length is that of the model it was published with.
    assert embedlm.load(folder, recipe="bge", device="cpu").max_length == 50
    assert arch != "bert" or model.with_recipe("bge").max_length == 50
    asked = embedlm.load(folder, recipe="bge", device="cpu", max_length=most)
    assert asked.max_length == most


def test_a_length_above_a_table_of_positions_is_cut(saved):
    _, folder = saved()
    change(folder, BERT_FILE, max_seq_length=5000)
    model = embedlm.load(folder, device="cpu")
    assert model.max_length == 256
    model.encode(VERY_LONG)


@pytest.mark.parametrize("key", ["tokenizer_args", "processor_kwargs"])
def test_a_length_of_the_tokenizers_arguments(saved, key):
    _, folder = saved()
    change(folder, BERT_FILE, max_seq_length=40, **{key: {"model_max_length": 12}})
    model = alike(SentenceTransformer(str(folder), device="cpu"), folder, VERY_LONG)
    assert model.max_length == 12


@pytest.mark.parametrize(
    ("stored", "asked", "dtype"),
    [
        (torch.float32, "float16", torch.float16),
        (torch.float32, "torch.bfloat16", torch.bfloat16),
        (torch.bfloat16, "float32", torch.float32),
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.bfloat16, None, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_numbers_of_the_networks_arguments(tmp_path, monkeypatch, stored, asked, dtype, key):
    seen = []

    def choose(given, numbers, device):
        seen.append((given, numbers))
        return torch.float32

    monkeypatch.setattr("embedlm.backbone.loading.choose_dtype", choose)
    folder = build("bert", tmp_path / "base", dtype=stored)
    transformer = models.Transformer(str(folder))
    peer = SentenceTransformer(modules=[transformer, models.Pooling(32)], device="cpu")
    peer.save(str(tmp_path / "theirs"), create_model_card=False)
    change(tmp_path / "theirs", BERT_FILE, model_args={key: asked})
    embedlm.load(tmp_path / "theirs", device="cpu")
    ((given, numbers),) = seen
    assert given == "auto"
    assert str(numbers).removeprefix("torch.") == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_args", {"torch_dtype": "float8"}),
        ("model_kwargs", {"num_hidden_layers": 1}),
        ("tokenizer_args", {"model_max_length": "x"}),
        ("config_args", {"dtype": "float32"}),
    ],
)
def test_arguments_of_loaders_that_are_refused(saved, key, value):
    _, folder = saved()
    change(folder, BERT_FILE, **{key: value})
    with pytest.raises(UnsupportedError, match=rf"{BERT_FILE}: {key} is .*can honour a mapping"):
        embedlm.load(folder, device="cpu")


# -- T5 encoders: Instructor, GTR and Sentence-T5 have the same files ---------------------------


@pytest.mark.parametrize(
    ("name", "version", "stripped"),
    [
        ("instructor-large", "2.2.2", True),
        ("model", None, True),
        ("model", "5.1.0", True),
        ("model", "6.2.0", False),
        ("gtr-t5-base", "2.2.0", False),
        ("my_sentence_t5", None, False),
    ],
)
def test_white_space_around_a_text_of_t5(tmp_path, name, version, stripped):
    transformer = models.Transformer(str(build("t5", tmp_path / "base")))
    parts = [models.Pooling(32), models.Dense(32, 12), models.Normalize()]
    peer = SentenceTransformer(modules=[transformer, *parts], device="cpu")
    folder = tmp_path / name
    peer.save(str(folder), create_model_card=False)
    change(folder, SETTINGS, __version__=version and {"sentence_transformers": version})
    texts = [" ", "  lead", "trail \n", "plants make food"]
    wanted = peer.encode([text.strip() if stripped else text for text in texts])
    model = embedlm.load(folder, device="cpu")
    close(model.encode(texts), wanted)
    assert model.renderer.takes_instruction(None) == stripped


# -- published systems whose folders say more than their names ---------------------------------


def test_a_model_that_was_tuned_from_jinas(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = tf.JinaEmbeddingsV3Config(**sizes, num_attention_heads=4, pad_token_id=0)
    base = build("bert", tmp_path / "base")
    tf.AutoModel.from_config(config).save_pretrained(base)
    parts = [models.Transformer(str(base), max_seq_length=30), models.Pooling(32, "cls")]
    peer = SentenceTransformer(modules=parts, prompts={"query": "find: "}, device="cpu")
    peer.save(str(tmp_path / "theirs"), create_model_card=False)
    model = alike(peer, tmp_path / "theirs", [*TEXTS, *VERY_LONG])
    assert model.recipe.name == "theirs"


@pytest.mark.parametrize("length", [20, None, "x"])
def test_the_length_of_a_folder_of_bge_m3(tmp_path, length):
    folder = build("xlm-r", tmp_path / "model")
    for name, width in (("sparse", 1), ("colbert", 32)):
        torch.save(nn.Linear(32, width).state_dict(), folder / f"{name}_linear.pt")
    (folder / BERT_FILE).write_text(json.dumps({"max_seq_length": length}))
    if length == "x":
        with pytest.raises(UnsupportedError, match="max_seq_length is 'x'; EmbedLM can honour"):
            embedlm.load(folder, device="cpu")
        return
    model = embedlm.load(folder, device="cpu")
    assert model.recipe.name == "bge-m3"
    assert len(model.render(VERY_LONG).ids[0]) == (length or 200)

"""Tiny folders of each layout, and how EmbedLM and their own library open them."""

import json
from dataclasses import dataclass

import numpy as np
import torch
import transformers
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from sentence_transformers import (
    CrossEncoder,
    MultiVectorEncoder,
    SentenceTransformer,
    SparseEncoder,
    models,
)
from sentence_transformers.sparse_encoder.models import (
    MLMTransformer,
    SparseStaticEmbedding,
    SpladePooling,
)

import embedlm
from tests.models import build, build_tokenizer

TEXTS = ["Plants MAKE food", "x", "the quick brown fox jumps over the lazy dog; " * 3 + "end"]
RECIPE = "embedlm.yaml"


def _plain(folder):
    build("llama", folder)


def _dense(folder, **options):
    base = build("bert", folder.with_name("base"))
    modules = [
        models.Transformer(str(base)),
        models.Pooling(32, "mean", include_prompt=False),
        models.Dense(32, 12),
        models.Normalize(),
    ]
    prompts = {"query": "find {this}: ", "document": "", "title": "t: "}
    options = {"prompts": prompts, "default_prompt_name": "title", "truncate_dim": 8, **options}
    peer = SentenceTransformer(modules=modules, device="cpu", **options)
    peer.save(str(folder), create_model_card=False)


def _sparse(folder):
    base = build("bert", folder.with_name("base"))
    modules = [MLMTransformer(str(base)), SpladePooling("max")]
    SparseEncoder(modules=modules, max_active_dims=30, device="cpu").save(str(folder))


def _table():
    torch.manual_seed(0)
    return models.StaticEmbedding(build_tokenizer("encoder").backend_tokenizer, embedding_dim=32)


def _static(folder):
    modules = [_table(), models.LayerNorm(32), models.Dense(32, 12), models.Normalize()]
    prompts = {"query": "find {this}: ", "title": "t: "}
    SentenceTransformer(modules=modules, device="cpu", prompts=prompts).save(
        str(folder), create_model_card=False
    )
    fields = {"model_type": "model2vec", "normalize": True, "hidden_dim": 32}
    (folder / "config.json").write_text(json.dumps(fields))


def _router(folder):
    base = build("bert", folder.with_name("base"))
    document = [models.Transformer(str(base)), models.Pooling(32, "cls")]
    router = models.Router(
        {"query": [_table()], "document": document},
        default_route="document",
        route_mappings={("faq", None): "query", ("query", "text"): "query"},
    )
    SentenceTransformer(modules=[router, models.Normalize()], device="cpu").save(
        str(folder), create_model_card=False
    )


def _inference_free(folder):
    mlm = MLMTransformer(str(build("bert", folder.with_name("base"))))
    torch.manual_seed(0)
    query = SparseStaticEmbedding(mlm.tokenizer, weight=torch.rand(400))
    router = models.Router.for_query_document([query], [mlm, SpladePooling("max")])
    SparseEncoder(modules=[router], device="cpu").save(str(folder))


def _pylate(folder):
    build("bert", folder)
    torch.manual_seed(0)
    settings = {
        "model_type": "ColBERT",
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": "[Q] ",
        "document_prefix": "[D] ",
        "query_length": 12,
        "document_length": 40,
        "attend_to_expansion_tokens": False,
        "do_query_expansion": True,
        "skiplist_words": ["."],
    }
    layer = {
        "in_features": 32,
        "out_features": 8,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    kinds = ("sentence_transformers.models.Transformer", "pylate.models.Dense.Dense")
    listing = [
        {"idx": index, "name": str(index), "path": path, "type": kind}
        for index, (path, kind) in enumerate(zip(("", "1_Dense"), kinds, strict=True))
    ]
    (folder / "1_Dense").mkdir()
    save_file({"linear.weight": torch.randn(8, 32)}, folder / "1_Dense" / "model.safetensors")
    for name, content in (
        ("config_sentence_transformers.json", settings),
        ("modules.json", listing),
        ("sentence_bert_config.json", {"max_seq_length": 50, "do_lower_case": False}),
        ("1_Dense/config.json", layer),
    ):
        (folder / name).write_text(json.dumps(content))


def _cross_encoder(folder):
    base = build("bert", folder.with_name("base"), head=False)
    torch.manual_seed(0)
    CrossEncoder(str(base), num_labels=1, max_length=40, device="cpu").save_pretrained(str(folder))


def _adapter(folder):
    base = build("llama", folder.with_name("base"))
    torch.manual_seed(0)
    network = transformers.AutoModel.from_pretrained(base)
    tuned = get_peft_model(network, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    tuned.save_pretrained(folder)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "base_model_name_or_path": "../base"}))


def _own(folder):
    base = build("bert", folder.with_name("base"))
    recipe = {
        "name": "mine",
        "prompt": {"query": "find {text}", "default": "{text}", "max_length": 60},
        "pooling": {"kind": ["mean", "cls"]},
        "normalize": True,
    }
    embedlm.load(base, recipe, device="cpu").save_pretrained(folder)
    file = folder / RECIPE  # JSON is YAML
    file.write_text(json.dumps(yaml.safe_load(file.read_text())))


def _both(model):
    return [np.asarray(encode(TEXTS)) for encode in (model.encode, model.encode_query)]


def _sparse_rows(model):
    every = [encode(TEXTS) for encode in (model.encode, model.encode_query)]
    if hasattr(every[0], "sparse"):
        return [one.sparse.toarray() for one in every]
    return [one.to_dense().numpy() for one in every]


def _token_rows(model):
    every = [encode(TEXTS) for encode in (model.encode_document, model.encode_query)]
    rows = [getattr(one, "multi_vector", one) for one in every]
    return [np.asarray(row) for one in rows for row in one]


def _pairs(model):
    pairs = [(TEXTS[0], text) for text in TEXTS]
    return [np.asarray(model.predict(pairs))]


@dataclass(frozen=True)
class Layout:
    """A kind of folder: how it is made, and opened by EmbedLM and by its own library."""

    make: object
    ours: object
    theirs: object
    outputs: object
    unread: tuple = ()
    """Files that only the other library reads, since the recipe stands in one of ours."""


def _load(folder):
    return embedlm.load(folder, device="cpu")


def _peer(kind):
    return lambda folder: kind(str(folder), device="cpu")


class Plain:
    """The mean of a network's last states, by transformers and peft alone."""

    def __init__(self, folder):
        adapter = folder / "adapter_config.json"
        base = folder
        if adapter.is_file():
            base = folder / json.loads(adapter.read_text())["base_model_name_or_path"]
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(base)
        self.network = transformers.AutoModel.from_pretrained(base)
        self.limit = self.network.config.max_position_embeddings
        if adapter.is_file():
            self.network = PeftModel.from_pretrained(self.network, folder)
        self.network.eval()

    def encode(self, texts):
        """Return the vectors of texts, (n, D)."""
        limit = min(self.tokenizer.model_max_length, self.limit)
        rows = [self.tokenizer(text, truncation=True, max_length=limit).input_ids for text in texts]
        with torch.no_grad():
            states = [self.network(torch.tensor([row])).last_hidden_state[0] for row in rows]
        return torch.stack([h_TD.mean(0) for h_TD in states]).numpy()

    encode_query = encode


_DENSE = (_load, _peer(SentenceTransformer), _both)
LAYOUTS = {
    "transformers": Layout(_plain, _load, Plain, _both),
    "dense": Layout(_dense, *_DENSE),
    "sparse": Layout(_sparse, _load, _peer(SparseEncoder), _sparse_rows),
    "static": Layout(_static, *_DENSE),
    "router": Layout(_router, *_DENSE),
    "inference-free": Layout(_inference_free, _load, _peer(SparseEncoder), _sparse_rows),
    "pylate": Layout(_pylate, _load, _peer(MultiVectorEncoder), _token_rows),
    "cross-encoder": Layout(
        _cross_encoder,
        lambda folder: embedlm.Reranker(folder, device="cpu"),
        _peer(CrossEncoder),
        _pairs,
    ),
    "adapter": Layout(_adapter, _load, Plain, _both),
    "own": Layout(
        _own,
        *_DENSE,
        unread=(
            "1_Pooling/config.json",
            "config_sentence_transformers.json",
            "modules.json",
            "sentence_bert_config.json",
        ),
    ),
}

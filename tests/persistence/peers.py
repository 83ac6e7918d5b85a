"""Comparing a folder read here with sentence-transformers' own reading of it."""

import json

import numpy as np
from sentence_transformers import SentenceTransformer

import embedlm

TEXTS = ["plants MAKE food", "x", "the Quick brown fox jumps", "a committee met on Tuesday"]


def close(a, b, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)


def alike(peer, folder, texts=TEXTS):
    """Compare every role, and again after our saving and reading by both."""
    model = embedlm.load(folder, device="cpu")
    for name in ("encode", "encode_query", "encode_document"):
        close(getattr(model, name)(texts), getattr(peer, name)(texts))
    assert model.dim == peer.get_embedding_dimension()
    return model


def alike_and_again(peer, folder, texts=TEXTS):
    model = alike(peer, folder, texts)
    again = folder.parent / "ours"
    model.save_pretrained(again)
    alike(SentenceTransformer(str(again), device="cpu"), again, texts)
    (again / "embedlm.yaml").unlink()
    alike(peer, again, texts)
    return model


def change(folder, file, **keys):
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **keys}))

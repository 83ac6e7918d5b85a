"""Reading the parity fixtures: checkpoints with the outputs of the reference implementations."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

ROOT = os.environ.get("EMBEDLM_PARITY")
needs_parity = pytest.mark.skipif(ROOT is None, reason="EMBEDLM_PARITY is not set")


def folder(case):
    return Path(ROOT) / case


def facts(case):
    return json.loads((folder(case) / "case.json").read_text())


def expected(case, file="expected.npz"):
    return np.load(folder(case) / file)


def texts():
    return json.loads((Path(ROOT) / "texts.json").read_text())


def assert_close(found, wanted, *, atol, rtol=0.0, cosine=None, skip=()):
    rows = np.setdiff1d(np.arange(len(wanted)), np.asarray(skip, dtype=int))
    found, wanted = np.asarray(found)[rows], np.asarray(wanted)[rows]
    np.testing.assert_allclose(found, wanted, atol=atol, rtol=rtol)
    if cosine is not None:
        norms = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
        assert ((found * wanted).sum(1) / norms).min() >= cosine

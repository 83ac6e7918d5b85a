"""Settings of PyLate's folders, read as sentence-transformers reads them."""

import json
import shutil

import numpy as np
import pytest

import embedlm
from embedlm.errors import UnsupportedError
from tests.persistence.fuzz_layouts import LAYOUTS

PYLATE = LAYOUTS["pylate"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "pylate"
    PYLATE.make(folder)
    return folder


def changed(sound, tmp_path, file="config_sentence_transformers.json", **keys):
    folder = shutil.copytree(sound, tmp_path / "model")
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **keys}))
    return folder


@pytest.mark.parametrize(
    "keys",
    [
        {"do_query_expansion": False},
        {"do_query_expansion": False, "query_length": 9},
        {"attend_to_expansion_tokens": True},
        {"query_length": 20, "document_length": 9},
        {"skiplist_words": []},
        {"skiplist_words": ["Ġthe", "x"]},
        {"query_prefix": "{query}: ", "document_prefix": ""},
        {"prompts": {"query": "find ", "document": "read "}},
    ],
    ids=str,
)
def test_settings(sound, tmp_path, keys):
    folder = changed(sound, tmp_path, **keys)
    ours, theirs = (PYLATE.outputs(one(folder)) for one in (PYLATE.ours, PYLATE.theirs))
    assert [v.shape for v in ours] == [v.shape for v in theirs]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_queries_are_filled_up_with_eos_where_there_is_no_mask(sound, tmp_path):
    folder = changed(sound, tmp_path, "tokenizer_config.json", mask_token=None)
    ours, theirs = (PYLATE.outputs(one(folder)) for one in (PYLATE.ours, PYLATE.theirs))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_control_tokens_in_a_text_are_read_as_the_library_reads_them(sound):
    spelled = ["a <mask> b", "the </s> tag"]
    ours, theirs = PYLATE.ours(sound), PYLATE.theirs(sound)
    for role in ("query", "document"):
        found = ours.encode(spelled, role=role).multi_vector
        for a, b in zip(found, getattr(theirs, f"encode_{role}")(spelled), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("keys", [{"truncate_dim": 4}, {"max_active_dims": 4}])
def test_settings_of_other_kinds_are_refused(sound, tmp_path, keys):
    folder = changed(sound, tmp_path, **keys)
    with pytest.raises(UnsupportedError, match=rf"{next(iter(keys))} is 4, and only a"):
        embedlm.load(folder)

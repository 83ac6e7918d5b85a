import json

import pytest

from tests.chat_server import serving
from tests.command import sentences
from tests.synthesis.writer_server import WriterServer


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def serve():
    with serving(WriterServer) as start:
        yield start


@pytest.fixture(scope="session")
def passages():
    texts = list(dict.fromkeys(sentences(40, seed=5)))[:30]
    return [{"id": f"p{i}", "text": text} for i, text in enumerate(texts)]


@pytest.fixture
def passage_file(tmp_path, passages):
    path = tmp_path / "passages.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in passages))
    return path

"""How the built-in model is trained on a GPU: texts as ranges of ids, back to back."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import embedlm
from tests.models import build

EXAMPLE = Path(__file__).parents[2] / "examples/builtin_model"
DOCUMENTS = [
    ["Plants make food.", "The irrigation plan was reviewed.", "Members asked why (it was late)."],
    ["Naïve café 東京.", "x", "The quick brown fox jumps over 13 lazy dogs."],
]
PAIRS = [["Photosynthesis", "It converts light energy.", "Glucose stores it."]]
SHORT = ["What is a fox?", "A committee met on Tuesday."]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The module, the texts as ids, the student and both folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        import packed
        from student import Student

        patch.setattr(packed, "PHRASES", 20)
        patch.setattr(packed, "CANDIDATES", 200)
        folder = tmp_path_factory.mktemp("texts")
        for name, documents in (("documents", DOCUMENTS), ("pairs", PAIRS)):
            lines = "\n\n".join("\n".join(document) for document in documents)
            (folder / f"{name}.txt").write_text(lines + "\n\n", encoding="utf-8")
        (folder / "short.txt").write_text("\n".join(SHORT) + "\n", encoding="utf-8")
        student = build("llama", tmp_path_factory.mktemp("student"))
        teacher = build("bert", tmp_path_factory.mktemp("teacher"), head=False)
        corpus = packed.Corpus.read(folder, student, teacher, processes=1)
        again = packed.Corpus.read(folder, student, teacher, processes=0)  # kept: none is started
        assert torch.equal(again.student_T, corpus.student_T)
        yield packed, corpus, Student.load(student, 3, 32, causal=False), student, teacher


def student_ids(corpus, batch, i):
    """Return one text's ids."""
    first, opening, following, tokens = (
        int(x[i]) for x in (batch.first_N, batch.opening_N, batch.next_N, batch.tokens_N)
    )
    head = corpus.first_T[first : first + min(opening, tokens)]
    rest = corpus.student_T[following : following + max(0, tokens - opening)]
    return [*head.tolist(), *rest.tolist()]


def test_every_range_has_the_ids_of_its_text(parts):
    packed, corpus, _, folder, _ = parts
    known = Tokenizer.from_file(str(folder / "tokenizer.json"))
    documents = [*DOCUMENTS, *PAIRS]
    starts = np.cumsum([0, *map(len, documents)])
    for start, document in zip(starts, documents, strict=False):
        for a, b in itertools.combinations(range(len(document) + 1), 2):
            first, last = (torch.tensor([int(start) + x]) for x in (a, b))
            batch = packed.ranges(corpus, first, last)
            wanted = known.encode(" ".join(document[a:b]), add_special_tokens=False).ids
            assert student_ids(corpus, batch, 0) == wanted[: packed.MAX_TOKENS]


def test_drawn_texts_stay_inside_their_documents_and_their_limit(parts):
    packed, corpus, *_ = parts
    torch.manual_seed(0)
    batch = packed.cut(packed.draw(corpus), 500)
    whole = {
        " ".join(d[a:b])
        for d in [*DOCUMENTS, *PAIRS]
        for a, b in itertools.combinations(range(len(d) + 1), 2)
    }
    known = Tokenizer.from_file(str(parts[3] / "tokenizer.json"))
    texts = [known.decode(student_ids(corpus, batch, i)) for i in range(len(batch.tokens_N))]
    sentences = " ".join(s for d in [*DOCUMENTS, *PAIRS] for s in d)
    assert int(batch.tokens_N.sum()) <= 500
    assert len({*texts} & whole) > 5, "passages are drawn"
    assert all(t in whole or t in SHORT or t in sentences for t in texts)


def test_titles_stand_before_their_paragraphs(parts):
    packed, corpus, _, folder, _ = parts
    known = Tokenizer.from_file(str(folder / "tokenizer.json"))
    batch = packed.draw(corpus, pairs=2)
    texts = [known.decode(student_ids(corpus, batch, i)) for i in range(4)]
    assert texts == [PAIRS[0][0]] * 2 + [" ".join(PAIRS[0][1:])] * 2


def test_batches_give_the_vectors_of_texts_alone(parts):
    packed, corpus, student, _, _ = parts
    torch.manual_seed(1)
    batch = packed.cut(packed.draw(corpus), 300)
    with torch.no_grad():
        together = packed.student_means(student, corpus, batch, 300)
        for i in range(len(together)):
            ids = torch.tensor(student_ids(corpus, batch, i))
            alone = student.states(ids, [len(ids)]).mean(0)
            torch.testing.assert_close(together[i], alone, rtol=1e-4, atol=1e-5)


def test_the_teacher_is_the_model_that_the_library_opens(parts):
    packed, corpus, _, _, folder = parts
    teacher = packed.Bert.load(folder, "cpu", torch.float32)
    numbers = torch.arange(sum(map(len, [*DOCUMENTS, *PAIRS])))
    batch = packed.ranges(corpus, numbers, numbers + 1)
    found = packed.teacher_vectors(teacher, corpus, batch, (1, 2))
    model = embedlm.load(folder, "plain-mean", dtype="float32")
    texts = [s for d in [*DOCUMENTS, *PAIRS] for s in d]
    wanted = model.encode(texts, normalize=True)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=2e-5)

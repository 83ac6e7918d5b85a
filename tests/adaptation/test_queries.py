"""From documents to queries: chunks, the six derived kinds, the caller's queries, three parts."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from embedlm.adaptation.chunks import cut, read_corpus
from embedlm.adaptation.derived import Query, derived
from embedlm.adaptation.given import read_queries
from embedlm.adaptation.queries import searched
from embedlm.adaptation.settings import DERIVED, Settings
from embedlm.adaptation.split import DEV, HELD_OUT, TRAIN, split_documents
from embedlm.adaptation.written import Writer
from embedlm.errors import EmbedLMError, InputError
from embedlm.generation import FunctionGenerator
from tests.adaptation.conftest import write_documents
from tests.models import build_tokenizer

TOKENIZER = build_tokenizer()


@pytest.fixture
def chunks(documents):
    return list(cut(read_corpus(documents).documents, TOKENIZER, 210))


def test_chunks_keep_all_text_with_its_title_and_heading(documents, chunks):
    for document in read_corpus(documents).documents:
        own = [chunk for chunk in chunks if chunk.document == document.id]
        lines = [line for line in document.text.splitlines() if line]
        assert {chunk.title for chunk in own} == {lines[0].removeprefix("# ")}
        for heading, text in ((lines[1], lines[2]), (lines[3], lines[4])):
            parts = [chunk for chunk in own if chunk.heading == heading.removeprefix("## ")]
            assert " ".join(chunk.text for chunk in parts) == text
            assert all(chunk.passage.startswith(chunk.title) for chunk in parts)
    assert len({chunk.id for chunk in chunks}) == len(chunks)


@pytest.mark.parametrize("size", [20, 50, 1000])
def test_no_chunk_is_longer_than_was_asked_for(documents, size):
    for chunk in cut(read_corpus(documents).documents, TOKENIZER, size):
        assert len(TOKENIZER(chunk.text, add_special_tokens=False)["input_ids"]) <= size


def test_records_keep_their_ids_and_titles_and_equal_texts_count_once(tmp_path):
    rows = [{"_id": f"r{i}", "title": "Iron", "text": f"It is metal {i // 2}."} for i in range(4)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chunks = list(cut(read_corpus(tmp_path).documents, TOKENIZER, 210))
    assert [chunk.id for chunk in chunks] == ["r0", "r2"]
    assert chunks[0].passage == "Iron It is metal 0."


def test_code_and_words_that_begin_with_number_signs_are_no_headings(tmp_path):
    code = " ".join(f"Install part {i} and run the whole thing once more." for i in range(8))
    text = f"They move water. {'It flows. ' * 25}"
    page = f"# Pumps\n\n## Use ##\n\n{text}\n\n    # {code}\n\nEnd of it.\n"
    (tmp_path / "a.md").write_text(page)
    found = list(cut(read_corpus(tmp_path).documents, TOKENIZER, 40))
    assert {(chunk.title, chunk.heading) for chunk in found} == {("Pumps", "Use")}
    assert " ".join(chunk.text for chunk in found).count("Install part") == 8


def test_files_of_one_name_in_two_folders_are_two_documents(tmp_path):
    for name in ("a", "b"):
        write_documents(tmp_path / name, count=1, seed=ord(name))
    assert [d.id for d in read_corpus(tmp_path).documents] == ["a/page0.md", "b/page0.md"]


def test_all_six_kinds_are_made_and_what_is_a_query_is_not_in_its_passage(chunks):
    queries = list(derived(chunks, DERIVED, 6, seed=0))
    assert {query.kind for query in queries} == set(DERIVED)
    for query in queries:
        if query.kind in ("title", "heading", "first_sentence", "cloze"):
            assert query.text not in query.passage
            assert query.passage != query.chunk.passage
        if query.kind == "keywords":
            words = query.chunk.text.lower()
            assert all(word in words for word in query.text.split())


def test_queries_depend_on_chunk_and_seed_alone(chunks):
    whole = {(q.text, q.chunk.id) for q in derived(chunks, ("cloze",), 1, seed=0)}
    again = {(q.text, q.chunk.id) for q in derived(chunks[::-1], ("cloze",), 1, seed=0)}
    other = {(q.text, q.chunk.id) for q in derived(chunks, ("cloze",), 1, seed=1)}
    assert whole == again
    assert whole != other


def test_kinds_are_mixed_evenly_where_a_chunk_gives_fewer_than_it_could(chunks):
    counts = Counter(query.kind for query in derived(chunks, DERIVED, 2, seed=0))
    assert max(counts.values()) < 0.5 * counts.total()


# -- the caller's queries ---------------------------------------------------------------------


def test_a_positive_is_an_id_or_a_text_or_part_of_one(chunks, tmp_path):
    first, second = chunks[0], chunks[-1]
    rows = [
        {"query": "by id", "positives": [first.document]},
        {"query": "by text", "positives": [second.passage]},
        {"query": "by a part", "positives": [second.text[:40]]},
        {"query": "nowhere", "positives": ["no page says this"]},
        {"query": "none", "positives": []},
    ]
    file = tmp_path / "queries.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = read_queries(file, chunks)
    found = {own[0].text: [query.chunk.id for query in own] for own in asked.queries}
    assert found["by id"] == [c.id for c in chunks if c.document == first.document]
    assert found["by text"] == [second.id]
    assert second.id in found["by a part"]
    assert [reject.line for reject in asked.set_aside] == [4, 5]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[3:]))
    with pytest.raises(InputError, match=r"no query .* has a positive among the documents"):
        read_queries(file, chunks)


# -- parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 4, 10, 97])
@pytest.mark.parametrize("held_out", [0.1, 0.2, 0.5])
def test_every_part_has_documents_and_about_its_share(count, held_out):
    split = split_documents([str(i) for i in range(count)], {}, held_out, seed=0)
    counts = Counter(split.part.values())
    assert set(counts) == {TRAIN, DEV, HELD_OUT}
    assert abs(counts[HELD_OUT] - held_out * count) <= 1
    assert split.by == "document"


def test_documents_that_share_a_query_are_in_one_part():
    shared = {f"q{i}": [str(3 * i), str(3 * i + 1)] for i in range(10)}
    split = split_documents([str(i) for i in range(30)], shared, 0.2, seed=1)
    for own in shared.values():
        assert len({split.part[document] for document in own}) == 1


def test_queries_are_divided_where_they_join_most_documents():
    names = [str(i) for i in range(30)]
    shared = {f"q{i}": [str(i), str(i + 1)] for i in range(29)}
    split = split_documents(names, shared, 0.2, seed=0)
    assert split.by == "query"
    assert set(split.part) == set(shared)
    assert split.of("derived", "3") == TRAIN


def test_too_few_documents_are_refused():
    with pytest.raises(InputError, match="at least 3 are needed"):
        split_documents(["a", "b"], {}, 0.2, seed=0)


# -- queries by a language model --------------------------------------------------------------

ANSWERS = {0: "where does the old one cross?\nAnd more.", 1: "river", 2: " "}


def answer(chat, sampling, seed):
    """Answer by the number that the last passage of the prompt holds; other passages: a copy."""
    passage = chat[-1]["content"].rsplit("Passage: ", 1)[1].removesuffix("\nQuestion:")
    number = passage.rsplit(" ", 1)[1]
    return ANSWERS[int(number)] if number.isdecimal() else passage[10:50]


def test_a_pipeline_writes_queries_and_what_fails_its_checks_is_told(chunks, monkeypatch, tmp_path):
    monkeypatch.setenv("EMBEDLM_CACHE", str(tmp_path))
    own = [replace(chunks[i], text=f"{chunks[i].text} {i}") for i in (0, 1, 2)] + [chunks[3]]
    writer = Writer.of(FunctionGenerator(answer), None, None, None)
    assert f"Passage: {own[0].passage}\n" in writer.example(own[0], 0).chat[-1]["content"]
    found, aside = writer.write(own, tmp_path / "written.jsonl", seed=0)
    assert found == [["where does the old one cross?", own[0].id]]
    assert {reject.file: reject.error for reject in aside} == {
        own[1].id: "check: query: 1 words, not 3 to 60",
        own[2].id: "query: unreadable: the answer is empty",
        own[3].id: "check: query: a copy of passage",
    }


@pytest.mark.parametrize(
    ("pipeline", "told"),
    [
        ("hyde", "reads queries; name one that reads passages"),
        ("inpars-v2", "filters by a re-ranker; name one"),
        ("inparz", "inpars"),
    ],
)
def test_a_pipeline_that_cannot_write_queries_is_refused(pipeline, told):
    with pytest.raises(EmbedLMError, match=told):
        Writer.of(FunctionGenerator(answer), pipeline, None, None)


def test_of_a_large_corpus_answers_and_a_sample_are_searched(chunks):
    asked = [[Query("q", "given", chunk, chunk.passage)] for chunk in chunks[5:8]]
    found = searched(chunks, asked, 6)
    assert len(found) == 6
    assert set(chunks[5:8]) <= set(found)
    assert searched(chunks, asked, len(chunks)) == chunks


# -- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "options"),
    [
        ("kinds: 'titel' is not known.*Did you mean 'title'", {"kinds": ["titel"]}),
        ("kinds: given was asked for, and none was given", {"kinds": ["title", "given"]}),
        ("held_out is 0.7", {"held_out": 0.7}),
        ("batch is 1", {"batch": 1}),
        ("steps is 0", {"steps": 0}),
        ("learning_rate is nan", {"learning_rate": float("nan")}),
        ("train is 'heads'", {"train": "heads"}),
        ("filter 'perc' is not known", {"filters": {"perc": 1}}),
    ],
)
def test_options_are_refused(told, options):
    kinds = options.pop("kinds", None)
    with pytest.raises(InputError, match=told):
        Settings.of(kinds, given=False, llm=False, **options)


# -- scripts without blanks -------------------------------------------------------------------

WIND = {
    "zh": (
        "# 风力发电机\n\n## 叶片与机组\n\n叶片通常由玻璃纤维和环氧树脂制成。叶片的长度决定了"
        "扫风面积。在风速过高的时候，变桨系统会调整叶片角度！机组结冰会降低效率，机组因此需要"
        "加热装置，效率仍然不高。"
    ),
    "ja": (
        "# 風力発電所\n\n## 羽根とその問題\n\n風力発電は風の力で風車を回す方法である。風車の"
        "羽根は三枚のものが多い。強風のときは風力発電を止めることになる。風車の騒音が問題にな"
        "ることもある。"
    ),
    "ko": (
        "# 풍력 발전\n\n## 풍력 터빈 날개\n\n풍력은 바람의 힘으로 전기를 만드는 방법이다. 날"
        "개는 유리 섬유로 만든다. 바람이 너무 강하면 풍력 터빈을 멈춘다. 날개가 얼면 전기를 "
        "적게 만든다."
    ),
    "th": (
        "# พลังงานลม\n\n## ใบพัดกังหันลม\n\nกังหันลมเปลี่ยนพลังงานจลน์ของลมให้เป็นไฟฟ้า ใบพัด"
        "มักทำจากใยแก้วและเรซิน เมื่อลมแรงเกินไป ระบบจะหยุดกังหันลมเพื่อความปลอดภัย ใบพัดที่ม"
        "ีน้ำแข็งผลิตไฟฟ้าได้น้อย"
    ),
}


def _queries_of(folder, text, size=2_000):
    folder.mkdir()
    (folder / "a.md").write_text(text, encoding="utf-8")
    chunks = list(cut(read_corpus(folder).documents, TOKENIZER, size))
    return {query.kind: query for query in derived(chunks, DERIVED, 6, seed=0)}


@pytest.mark.parametrize(
    ("language", "keywords", "asked"),
    [
        ("zh", {"叶片", "机组"}, "什么 解释 知识 意思 作用 工作"),
        ("ja", {"風車", "風力発電"}, "です ください ます"),
        ("ko", {"풍력", "바람", "날개", "전기"}, "뜻 요 주세요"),
        ("th", {"กังหันลม", "ใบพัด"}, "อะไร อย่างไร อธิบาย"),
    ],
)
def test_all_kinds_are_made_of_a_script_without_blanks(language, keywords, asked, tmp_path):
    found = _queries_of(tmp_path / language, WIND[language])
    assert set(found) == set(DERIVED)
    assert set(found["keywords"].text.split()) & keywords
    assert any(word in found["question"].text for word in asked.split())
    assert any(word in found["question"].text for word in keywords)
    for kind in ("title", "heading", "first_sentence", "cloze"):
        assert found[kind].text not in found[kind].passage
    assert len(found["cloze"].text) < 0.5 * len(found["cloze"].chunk.text)


def test_no_english_question_is_asked_about_another_language(tmp_path):
    german = (
        "Eine Windkraftanlage wandelt die Energie des Windes in Strom um. Die Flügel bestehen "
        "aus Glasfaser und Harz. Bei starkem Wind wird die Anlage angehalten. Auf dem Meer sind "
        "die Anlagen größer als an Land, und der Wind weht dort gleichmäßiger. Der Lärm der "
        "Anlage kann ein Problem sein, wenn Häuser in der Nähe stehen und der Wind sich dreht."
    )
    kinds = set(_queries_of(tmp_path / "de", german))
    assert {"keywords", "first_sentence", "cloze"} <= kinds
    assert "question" not in kinds

"""Every form is read as it was written, and as its own library writes it."""

import json
from collections import Counter

import pytest

from embedlm.data.collections import COLLECTIONS, read_collection
from embedlm.data.conversion import FOLDER_FORMS, convert, read_any, write_rows
from embedlm.data.public import mixtures, public_rows, public_sets
from embedlm.errors import InputError, RecordError

ROWS = [
    {
        "id": "q1",
        "query": "what do plants make",
        "positives": ["Plants make food.", "Leaves make sugar."],
        "positive_ids": ["a", "b"],
        "negatives": ["Oil floats."],
        "negative_ids": ["c"],
    },
    {"id": "q2", "query": "what floats", "positives": ["Oil floats."], "positive_ids": ["c"]},
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def told(records):
    return [
        (one.query, [d.text for d in one.positives], [d.text for d in one.negatives])
        for one in records
    ]


WANTED = [(row["query"], row["positives"], row.get("negatives", [])) for row in ROWS]


@pytest.mark.parametrize("form", FOLDER_FORMS)
def test_a_folder_is_read_as_it_was_written(file, tmp_path, form):
    out = tmp_path / "out"
    assert convert(file, out, to_form=form) == 2
    where = {"tevatron2": out / "train.jsonl", "automodel": out / "train.json"}.get(form, out)
    corpus = out / "corpus.jsonl" if form == "tevatron2" else None
    records = list(read_collection(where, form, corpus=corpus))
    assert told(records) == WANTED
    assert [one.others["id"] for one in records] == ["q1", "q2"]
    assert records[0].positives[0].id == "a"
    back = tmp_path / "back.jsonl"
    assert convert(where, back, from_form=form, corpus=corpus) == 2
    assert told(read_any(back, "records")) == WANTED


@pytest.mark.parametrize("form", ["records", "sentence-transformers", "flagembedding", "tevatron"])
def test_a_file_is_read_as_it_was_written(file, tmp_path, form):
    out = tmp_path / "out.jsonl"
    convert(file, out, to_form=form)
    found = told(read_any(out, "records"))
    if form == "sentence-transformers":  # a triplet a line; a query without negatives has none
        assert found == [(WANTED[0][0], [p], WANTED[0][2]) for p in WANTED[0][1]]
    else:
        assert found == WANTED


def test_e5_has_a_line_for_each_pair(file, tmp_path):
    out = tmp_path / "out.jsonl"
    convert(file, out, to_form="e5")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [set(line) for line in lines] == [{"query", "positive", "negative"}] * 2 + [
        {"query", "positive"}
    ]


def test_beir_as_the_benchmark_writes_it(tmp_path):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "7", "title": "Oil", "text": "It floats."}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "1", "text": "what floats", "metadata": {}}\n')
    (tmp_path / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n1\t7\t2\n")
    found = list(read_collection(tmp_path, "beir", split="test"))
    assert told(found) == [("what floats", ["Oil It floats."], [])]
    with pytest.raises(InputError, match="has no file train"):
        list(read_collection(tmp_path, "beir"))
    (tmp_path / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n1\t8\t1\n")
    with pytest.raises(RecordError, match="'8' is named"):
        list(read_collection(tmp_path, "beir", split="test"))


def collection(folder, corpus, queries, qrels):
    """Write a folder of BEIR's form, whose judgements have the fields q, d and rel."""
    folder.mkdir(exist_ok=True)
    for name, rows, keys in (
        ("corpus", corpus, ("_id", "text")),
        ("queries", queries, ("_id", "text")),
        ("qrels", qrels, ("q", "d", "rel")),
    ):
        lines = (json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


CORPUS = [("a", "Plants make food."), ("b", "Leaves make sugar."), ("c", "Oil floats.")]
QUERIES = [("q1", "what do plants make"), ("q2", "what floats")]


def test_what_is_named_and_not_there_is_refused_or_left_out_and_counted(tmp_path, run):
    qrels = [
        *(("q1", "a", 1), ("q1", "gone", 1), ("q1", "c", 0), ("q1", "lost", 0)),
        *(("q2", "gone", 2), ("q3", "a", 1)),
    ]
    folder = collection(tmp_path / "set", CORPUS, QUERIES, qrels)
    words = ("data", "convert", folder, "--from", "beir", "-o", tmp_path / "o.jsonl")
    assert "'gone' is named" in (line := run(*words).one_line())
    assert "--skip-missing" in line
    done = run(*words, "--skip-missing", "--json")
    assert json.loads(done.out) == {
        "records": 1,
        "output": str(tmp_path / "o.jsonl"),
        "left_out": {
            "positives that the corpus lacks": 2,
            "negatives that the corpus lacks": 1,
            "queries of which no positive is left": 1,
            "queries that have no text": 1,
        },
    }
    assert told(read_any(tmp_path / "o.jsonl", "records")) == [
        ("what do plants make", ["Plants make food."], ["Oil floats."])
    ]
    for form in ("records", "medi"):
        words = ("data", "convert", folder / "corpus.jsonl", "--from", form, "--skip-missing")
        assert "none can be missing" in run(*words, "-o", tmp_path / "p.jsonl").one_line()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"corpus": [*CORPUS, ("a", "Another text.")]}, r"corpus.jsonl:4: the id 'a' has another"),
        ({"queries": [*QUERIES, ("q1", "why")]}, r"queries.jsonl:3: the id 'q1' has another text"),
        ({"qrels": [("q1", "a", 1), ("q1", "a", 0)]}, r"qrels.jsonl:2: the passage 'a' has anothe"),
    ],
)
def test_what_stands_twice_and_differs_is_refused(tmp_path, more, message):
    same = {"corpus": CORPUS + CORPUS, "queries": QUERIES * 2, "qrels": [("q1", "a", 1)] * 2}
    folder = collection(tmp_path / "same", **same)
    assert told(read_collection(folder, "beir")) == [(QUERIES[0][1], [CORPUS[0][1]], [])]
    with pytest.raises(RecordError, match=message):
        list(read_collection(collection(tmp_path / "other", **{**same, **more}), "beir"))


def test_a_file_in_parts_is_read_whole_and_a_split_is_not_taken_for_another(tmp_path):
    for part in ("corpus", "queries", "qrels"):
        (tmp_path / part).mkdir()
    for number, (id, text) in enumerate(CORPUS):
        row = json.dumps({"_id": id, "text": text}) + "\n"
        (tmp_path / "corpus" / f"corpus-0000{number}-of-00003.jsonl").write_text(row)
    rows = "".join(json.dumps({"_id": id, "text": text}) + "\n" for id, text in QUERIES)
    (tmp_path / "queries" / "queries.jsonl").write_text(rows)
    for name, passage in (("test", "a"), ("test-hard", "c"), ("testing", "b")):
        row = {"query-id": "q1", "corpus-id": passage, "score": 1}
        (tmp_path / "qrels" / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    for form in ("mteb", "beir"):
        found = told(read_collection(tmp_path, form, split="test"))
        assert found == [("what do plants make", ["Plants make food."], [])]
    (tmp_path / "corpus" / "corpus-00001-of-00003.jsonl").unlink()
    with pytest.raises(InputError, match="one of 3 parts, and 2 are there"):
        list(read_collection(tmp_path, "mteb", split="test"))


def test_gpl_and_medi_as_their_authors_write_them(tmp_path):
    (tmp_path / "corpus.jsonl").write_text(
        "".join(f'{{"_id": "{i}", "title": "", "text": "text {i}"}}\n' for i in range(4))
    )
    (tmp_path / "qgen-queries.jsonl").write_text('{"_id": "g1", "text": "which one"}\n')
    row = {"qid": "g1", "pos": ["0"], "neg": {"bm25": ["1", "2"], "dense": ["2", "3"]}}
    (tmp_path / "hard-negatives.jsonl").write_text(json.dumps(row) + "\n")
    assert told(read_collection(tmp_path, "gpl")) == [
        ("which one", ["text 0"], ["text 1", "text 2", "text 3"])
    ]
    medi = tmp_path / "medi.json"
    row = {"query": ["Find it: ", "q"], "pos": ["", "p"], "neg": ["", "n"], "task_name": "t"}
    medi.write_text(json.dumps([row]))
    (found,) = read_collection(medi, "medi")
    assert (found.query, found.instruction, found.others["task"]) == ("q", "Find it:", "t")
    medi.write_text(json.dumps([row, {"query": "q"}]))
    with pytest.raises(RecordError, match=r"medi.json\[2\]"):
        list(read_collection(medi, "medi"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to_form": "bair"}, "Did you mean 'beir'"),
        ({"from_form": "biir"}, "Did you mean 'beir'"),
        ({"from_form": "tevatron2"}, "needs the file of its passages"),
        ({"corpus": "x"}, "leave corpus out"),
    ],
)
def test_what_cannot_be_is_refused(file, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        convert(file, tmp_path / "out.jsonl", **options)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_bad_record_is_told_by_file_and_line_and_nothing_is_written(file, tmp_path, run):
    file.write_text(file.read_text() + '{"query": "no positive"}\n')
    done = run("data", "convert", file, "--to", "beir", "-o", tmp_path / "out")
    assert "records.jsonl:3: has no positive" in done.one_line()
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("*.tmp"))


# -- public data sets -----------------------------------------------------------------------------


def test_every_public_set_has_what_its_kind_needs():
    needed = {"pairs": {"query", "positive"}, "triplets": {"query", "positive", "negative"}}
    needed |= {"scored": {"first", "second", "score"}}
    for name, one in public_sets().items():
        assert one.license, name
        assert one.hub or one.note, name
        if one.hub:
            assert needed.get(one.kind, set()) <= set(one.map), name
    for mixture in mixtures().values():
        assert set(mixture.sets) <= set(public_sets())
        assert all(0 < share <= 1 for share in mixture.sets.values())
    assert {"dureader", "eli5", "fever", "hotpotqa", "all-nli", "miracl"} <= set(public_sets())


def test_what_a_form_cannot_hold_is_left_out_and_counted(file, tmp_path, run):
    qrels = [("q1", "a", 1), ("q1", "c", 0), ("q2", "a", 0), ("q2", "b", 0)]
    folder = collection(tmp_path / "set", CORPUS, QUERIES, qrels)
    words = ("data", "convert", folder, "--from", "beir", "-o")
    told = "queries without a positive (all their grades are 0 or less)"
    done = run(*words, tmp_path / "o.jsonl", "--json")
    assert json.loads(done.out)["left_out"] == {told: 1}
    assert f"left out: 1 {told}" in run(*words, tmp_path / "p.jsonl").err
    collection(folder, CORPUS, QUERIES, qrels[1:])
    assert f"2 {told}" in run(*words, tmp_path / "q.jsonl").one_line()
    words = ("data", "convert", file, "--to", "sentence-transformers", "-o")
    done = run(*words, tmp_path / "r.jsonl")
    assert "1 record in" in done.out
    assert "left out: 1 records without negatives" in done.err
    (tmp_path / "pairs.jsonl").write_text('{"query": "q", "positives": ["p"]}\n')
    words = ("data", "convert", tmp_path / "pairs.jsonl", "--to", "sentence-transformers")
    assert "no record has negatives" in run(*words, "-o", tmp_path / "s.jsonl").one_line()
    assert not (tmp_path / "s.jsonl").exists()


def test_rows_come_through_the_library_from_a_folder_too(tmp_path):
    pytest.importorskip("datasets")
    home = tmp_path / "set"
    home.mkdir()
    rows = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(5)]
    rows.insert(1, {"question": "no answer", "answer": ""})
    (home / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    left_out = Counter()
    place = {"source": str(home), "config": "default"}
    found = list(public_rows("squad", **place, limit=3, left_out=left_out))
    assert left_out == {"rows without a query or a positive": 1}
    assert [row["query"] for row in found] == ["q0", "q1", "q2"]
    assert found[0]["positives"] == ["a0"]
    assert found[0]["license"] == public_sets()["squad"].license
    assert found[0]["source"] == "squad"
    assert write_rows(found, tmp_path / "out.jsonl") == 3
    assert told(read_any(tmp_path / "out.jsonl", "records"))[0] == ("q0", ["a0"], [])
    with pytest.raises(InputError, match="no hub has 'dureader' ready"):
        list(public_rows("dureader"))
    with pytest.raises(InputError, match="Did you mean 'squad'"):
        list(public_rows("squat"))
    assert set(COLLECTIONS) >= set(FOLDER_FORMS)


def test_what_is_read_is_never_written(file, tmp_path, run):
    before = file.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(file)
    for source, output in (
        (file, file),
        (file, tmp_path / "link.jsonl"),
        (tmp_path / "link.jsonl", file),
        (file, tmp_path / "x" / ".." / "records.jsonl"),
    ):
        (tmp_path / "x").mkdir(exist_ok=True)
        assert "is an input, too" in run("data", "convert", source, "-o", output).one_line()
    convert(file, tmp_path / "beir", to_form="beir")
    inside = tmp_path / "beir" / "corpus.jsonl"
    told = run("data", "convert", tmp_path / "beir", "--from", "beir", "-o", inside).one_line()
    assert "lies inside the input" in told
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("form", "content", "told"),
    [
        ("automodel", "[" * 100_000, "too many lists and objects"),
        ("automodel", '{"corpus": [3], "data": []}', "has another form"),
        ("automodel", '{"corpus": [{"path": "c"}], "data": [3]}', "has another form"),
        ("automodel", '{"corpus": [{}], "data": []}', "has none of path"),
        (
            "automodel",
            '{"corpus": [], "data": [{"id": "q", "question": "a", "pos_doc": 5}]}',
            "'pos_doc' is 5; give a list",
        ),
        ("medi", "3", "holds no list"),
        ("medi", "[" * 100_000, "too many lists and objects"),
    ],
)
def test_a_damaged_collection_is_told(tmp_path, run, form, content, told):
    (tmp_path / "d.json").write_text(content)
    words = ("data", "convert", tmp_path / "d.json", "--from", form)
    assert told in run(*words, "-o", tmp_path / "o.jsonl").one_line()


def test_a_damaged_judgement_is_told(file, tmp_path, run):
    convert(file, tmp_path / "beir", to_form="beir")
    (tmp_path / "beir" / "qrels" / "train.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\ta\tmuch\n"
    )
    words = ("data", "convert", tmp_path / "beir", "--from", "beir")
    assert (
        "the score is 'much'; give a number" in run(*words, "-o", tmp_path / "o.jsonl").one_line()
    )


def test_a_split_is_honoured_or_refused(file, tmp_path, run):
    words = ("data", "convert", file, "-o")
    assert "leave split out" in run(*words, tmp_path / "o.jsonl", "--split", "dev").one_line()
    for name in ("../x", "", "a/b"):
        told = run(*words, tmp_path / "b", "--to", "beir", "--split", name).one_line()
        assert "is no file's name" in told
    for form in ("beir", "mteb"):
        folder = tmp_path / form
        convert(file, folder, to_form=form, split="dev")
        again = tmp_path / f"{form}.jsonl"
        assert convert(folder, again, from_form=form, split="dev") == 2
        with pytest.raises(InputError, match="test"):
            convert(folder, again, from_form=form, split="test")


def test_options_of_an_inspection_that_nothing_uses_are_refused(file, run, with_model):
    assert "--against" in run("data", "inspect", file, *with_model).one_line()
    assert "--model" in run("data", "inspect", file, "-r", "plain-mean").one_line()
    for option in ("--samples", "--seed"):
        assert "0 or more" in run("data", "inspect", file, option, "-1").one_line()

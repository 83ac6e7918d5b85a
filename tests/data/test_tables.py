"""Quotes, line ends and odd bytes: every reader of files takes the same records from them."""

import pytest

from embedlm.data import Fields, Source, read_records, read_rows
from embedlm.errors import InputError, RecordError
from embedlm.evaluation.readers import read_pairs
from embedlm.search import read_passages


def by_source(path, **options):
    return [(record.text, record.error) for record in Source(path, Fields("s1"), **options)]


def by_search(path, **options):
    return [(passage.text, None) for passage in read_passages(path, text_field="s1", **options)]


def by_rows(path, **options):
    return [(row["s1"], None) for _, row in read_rows(Source(path, **options))]


def by_training(path):
    return [(pair.first, None) for pair in read_records(path).items]


def by_evaluation(path):
    return [(first, None) for first, _, _ in read_pairs(path)]


READERS = (by_source, by_search, by_rows, by_training, by_evaluation)
LONG = "long " * 400_000
WHOLE = {
    "a quote in a tsv": (
        "t.tsv",
        b's1\ts2\tscore\n"Star Wars\tb\t1\nc" d\te\t2\n',
        ['"Star Wars', 'c" d'],
    ),
    "quotes in a csv": (
        "t.csv",
        b's1,s2,score\n"a ""q"", b",c,1\n"two\nlines",d,2\n',
        ['a "q", b', "two\nlines"],
    ),
    "a quote inside a csv's cell": (
        "t.csv",
        b's1,s2,score\na 5" disk,b,1\nc,d,2\n',
        ['a 5" disk', "c"],
    ),
    "lines that end in CRLF": (
        "t.csv",
        b's1,s2,score\r\na,b,1\r\n"c\r\nd",e,2\r\n',
        ["a", "c\r\nd"],
    ),
    "a tsv of CRLF": (
        "t.tsv",
        b"s1\ts2\tscore\r\na\tb\t1\r\nc\td\t2\r\n",
        ["a", "c"],
    ),
    "a byte order mark": (
        "t.csv",
        b"\xef\xbb\xbfs1,s2,score\na,b,1\nc,d,2\n",
        ["a", "c"],
    ),
    "a byte order mark in a tsv": (
        "t.tsv",
        b"\xef\xbb\xbfs1\ts2\tscore\na\tb\t1\n",
        ["a"],
    ),
    "a byte order mark in jsonl": (
        "t.jsonl",
        b'\xef\xbb\xbf{"s1": "a", "s2": "b", "score": 1}\n',
        ["a"],
    ),
    "NUL bytes": (
        "t.csv",
        b"s1,s2,score\na\x00b,c,1\nd,e,2\n",
        ["a\0b", "d"],
    ),
    "NUL bytes in a tsv": (
        "t.tsv",
        b"s1\ts2\tscore\na\x00b\tc\t1\n",
        ["a\0b"],
    ),
    "no end of the last line": (
        "t.tsv",
        b's1\ts2\tscore\na\tb\t1\n"\td\t2',
        ["a", '"'],
    ),
    "a very long line": (
        "t.csv",
        f"s1,s2,score\n{LONG}x,b,1\nc,d,2\n".encode(),
        [LONG + "x", "c"],
    ),
}


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("what", WHOLE)
def test_every_reader_takes_the_same_records(tmp_path, reader, what):
    name, data, texts = WHOLE[what]
    (tmp_path / name).write_bytes(data)
    assert reader(tmp_path / name) == [(text, None) for text in texts]


HEAD, TAIL = b"s1,s2,score\nfirst,b,1\n", b"last,d,2\n"
SPOILT = {
    "a quote that is never closed": b'"open,b,1\n',
    "a quote that closes too early": b'"a" b,c,1\n',
    "too many cells": b"a,b,1,2\n",
    "too few cells": b"a\n",
    "bytes that are not UTF-8": b"\xff,b,1\n",
}


@pytest.mark.parametrize("what", SPOILT)
@pytest.mark.parametrize("end", [TAIL, TAIL * 50, b""])
def test_a_bad_row_costs_itself_alone(tmp_path, what, end):
    (tmp_path / "t.csv").write_bytes(HEAD + SPOILT[what] + end)
    rows = by_source(tmp_path / "t.csv")
    assert [text for text, error in rows if error is None] == ["first"] + ["last"] * (len(end) // 9)
    assert [error is None for _, error in rows].index(False) == 1
    assert sum(error is not None for _, error in rows) == 1


@pytest.mark.parametrize("reader", READERS[1:], ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("what", SPOILT)
def test_readers_that_stop_name_the_bad_row(tmp_path, reader, what):
    (tmp_path / "t.csv").write_bytes(HEAD + SPOILT[what] + TAIL)
    with pytest.raises(RecordError, match=r"t\.csv:3: "):
        reader(tmp_path / "t.csv")


def test_quoting_is_asked_for_or_switched_off(tmp_path):
    (tmp_path / "t.tsv").write_text('s1\tid\n"a\tb"\t1\n')
    (tmp_path / "t.csv").write_text('s1,id\n"a,1\n')
    for reader in (by_source, by_search, by_rows):
        assert reader(tmp_path / "t.tsv", quoting=True) == [("a\tb", None)]
        assert reader(tmp_path / "t.csv", quoting=False) == [('"a', None)]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("form", ["csv", "tsv", "parquet"])
def test_a_column_that_stands_twice_is_refused(tmp_path, reader, form):
    path = tmp_path / f"t.{form}"
    names = ["s1", "s2", "s1", "score"]
    if form == "parquet":
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table([arrow.array(["1"])] * 4, names=names), path)
    else:
        comma = "," if form == "csv" else "\t"
        path.write_text(f"{comma.join(names)}\n{comma.join('1234')}\n")
    with pytest.raises(InputError, match="several columns named 's1'"):
        reader(path)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"s1": "a", "s1": "b", "s2": "c", "score": 1}', "the field 's1' stands twice"),
        ('{"s1": "a", "s2": "b", "score": NaN}', "NaN is no number of JSON"),
        ('{"s1": "a", "s2": "b", "score": -Infinity}', "-Infinity is no number of JSON"),
    ],
)
def test_json_that_would_lose_something_is_a_bad_record(tmp_path, reader, line, told):
    (tmp_path / "t.jsonl").write_text(line + "\n")
    if reader is by_source:
        assert told in reader(tmp_path / "t.jsonl")[0][1]
        return
    with pytest.raises(RecordError, match=rf"t\.jsonl:1: not valid JSON: {told}"):
        reader(tmp_path / "t.jsonl")


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_a_table_without_a_header_is_told(tmp_path, reader, form):
    (tmp_path / f"t.{form}").write_bytes(b"")
    with pytest.raises(InputError, match=r"is empty; its first line must name the columns"):
        reader(tmp_path / f"t.{form}")


def test_a_kept_number_that_json_cannot_hold_is_a_bad_record(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a", "x": 1e999}\n{"text": "b", "x": 1}\n')
    first, second = Source(tmp_path / "t.jsonl", Fields(keep=("x",)))
    assert first.error == "its id or a kept field is NaN or infinite, which JSON cannot hold"
    assert second.error is None


@pytest.mark.parametrize("name", ["", "a\0b.txt", "x" * 300 + ".txt", "\udcff.txt", "x/" * 4000])
def test_a_name_that_no_file_can_have_is_refused(name):
    for reader in (Source, read_passages, read_records):
        with pytest.raises(InputError, match="name"):
            reader(name)

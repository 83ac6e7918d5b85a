"""Every form of file, under every compression, gives the same records."""

import csv
import gzip
import io
import json
import lzma
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedlm.data import Fields, Source, read_records, read_rows, read_texts
from embedlm.data.compression import COMPRESSIONS
from embedlm.data.forms import FORMS
from embedlm.errors import InputError, MissingExtraError, RecordError

ROWS = [
    {"key": f"k{i}", "body": f'text {i}, “quoted” "or" not\u2028', "title": "é"} for i in range(40)
]


def zstd():
    """Return the module that reads .zst, or skip."""
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    return pytest.importorskip(name)


def packed(data, compression):
    if compression == ".gz":
        return gzip.compress(data)
    if compression == ".xz":
        return lzma.compress(data)
    if compression == ".zst":
        return zstd().compress(data)
    return data


def written(form, rows, *, quoting=True):
    """Return the bytes of a file of this form."""
    if form == "txt":
        return "".join(f"{row['body']}\n" for row in rows).encode()
    if form == "md":
        return "\n\n".join(row["body"] for row in rows).encode()
    if form == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if form == "parquet":
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        buffer = io.BytesIO()
        parquet.write_table(arrow.Table.from_pylist(rows), buffer)
        return buffer.getvalue()
    delimiter = "\t" if form == "tsv" else ","
    if not quoting:
        lines = [delimiter.join(rows[0]), *(delimiter.join(row.values()) for row in rows)]
        return "\n".join(lines).encode()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


@pytest.mark.parametrize("form", [name for name, form in FORMS.items() if not form.paragraphs])
@pytest.mark.parametrize("compression", ["", *COMPRESSIONS])
def test_every_form_under_every_compression_gives_the_same_records(tmp_path, form, compression):
    path = tmp_path / f"in.{form}{compression}"
    data = written(form, ROWS, quoting=form == "csv")
    path.write_bytes(packed(data, compression))
    bare = FORMS[form].bare
    fields = Fields() if bare else Fields("body", "key", ("title",))
    source = Source(path, fields)
    records = list(source)
    texts = [row["body"].strip() if form == "md" else row["body"] for row in ROWS]
    assert [record.text for record in records] == texts
    assert all(record.error is None for record in records)
    if not bare:
        columns = [json.loads(record.columns) for record in records]
        assert columns == [{"id": row["key"], "title": row["title"]} for row in ROWS]
    assert source.position == source.total
    assert source.fingerprint()["format"] == form + compression
    assert list(Source(path, fields)) == records
    # Without the compression's suffix the file is found, too.
    assert list(Source(tmp_path / f"in.{form}", fields)) == records
    rows = [row for _, row in read_rows(path)]
    assert rows == ([{"text": text} for text in texts] if bare else ROWS)


@pytest.mark.parametrize("form", ["txt", "jsonl", "csv", "tsv"])
@pytest.mark.parametrize("compression", ["", *COMPRESSIONS])
def test_standard_input_is_read_in_every_form(monkeypatch, form, compression):
    data = packed(written(form, ROWS, quoting=form == "csv"), compression)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    fields = Fields() if form == "txt" else Fields("body")
    source = Source("-", fields, form + compression)
    assert [record.text for record in source] == [row["body"] for row in ROWS]
    assert source.total is None
    assert source.position == len(data)
    assert source.fingerprint()["stream"] is True


@pytest.mark.parametrize("form", ["txt", "md", "jsonl", "csv", "tsv", "html"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_file_in_utf16_is_refused_whole(tmp_path, form, encoding, mark):
    path = tmp_path / f"in.{form}.gz"
    path.write_bytes(gzip.compress((mark + "query,positive\na b,c d\n").encode(encoding)))
    name = f"{encoding[:6]}{encoding[7:]}".upper()
    for read in (read_rows, read_texts):
        with pytest.raises(InputError, match=rf"in {name}, not in UTF-8; save it as UTF-8"):
            list(read(path))


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_a_header_that_is_not_utf8_is_told_without_its_bytes(tmp_path, form):
    path = tmp_path / f"in.{form}"
    path.write_bytes("requ\u00eate\nb\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"the header of .* is not valid UTF-8"):
        list(read_rows(path))


HALF = '{"query": "a\\ud800", "positives": ["b"]}\n'


@pytest.mark.parametrize("read", [read_rows, lambda path: read_records(path).items])
def test_half_a_character_anywhere_in_a_record_is_told_with_its_line(tmp_path, read):
    path = tmp_path / "in.jsonl"
    pair = '{"query": "\\ud83d\\ude00", "positives": ["\\uD83D\\uDE00"]}\n'
    path.write_text(pair)
    assert len(list(read(path))) == 1
    for bad in (HALF, HALF.replace("query", "text"), '{"query": "a", "\\udfff": ["b"]}\n'):
        path.write_text(pair + bad)
        with pytest.raises(RecordError, match=r"in\.jsonl:2: holds a lone surrogate"):
            list(read(path))


def test_paragraphs_of_markdown_know_their_lines(tmp_path):
    path = tmp_path / "in.md"
    path.write_bytes(b"# One\n\n\ntwo\n  more of two\r\n\nbad \xff\nfour\n")
    source = Source(path)
    told = [(record.line, record.text, record.error is None) for record in source]
    assert told == [
        (1, "# One", True),
        (4, "two more of two", True),
        (7, "", False),
        (8, "four", True),
    ]


# -- tables ---------------------------------------------------------------------------------------

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)


@given(rows=st.lists(st.tuples(CELLS, CELLS), max_size=8), tabs=st.booleans())
def test_a_quoted_table_is_read_back(tmp_path_factory, rows, tabs):
    path = tmp_path_factory.mktemp("t") / ("t.tsv" if tabs else "t.csv")
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, delimiter="\t" if tabs else ",")
        writer.writerows([("name", "text"), *rows])
    found = [row for _, row in read_rows(Source(path, quoting=True))]
    assert found == [{"name": name, "text": text} for name, text in rows]


PLAIN = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00\t\n\r"), max_size=12
)


@given(rows=st.lists(st.tuples(PLAIN, PLAIN), max_size=8))
def test_a_table_without_quoting_is_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("t") / "t.tsv"
    lines = ["name\ttext", *("\t".join(row) for row in rows)]
    path.write_bytes("\n".join(lines).encode())
    found = [row for _, row in read_rows(path)]
    assert found == [{"name": name, "text": text} for name, text in rows]


def test_a_quote_in_a_tsv_is_text(tmp_path):
    path = tmp_path / "in.tsv"
    lines = ["id\ttext", *(f"{i}\tpassage {i}" for i in range(1, 201))]
    lines[3] = '3\t"Star Wars is a film'
    lines[5] = '5\tA New Hope"'
    path.write_text("\n".join(lines))
    records = list(Source(path))
    assert [json.loads(record.columns)["id"] for record in records] == [
        str(i) for i in range(1, 201)
    ]
    assert (records[2].text, records[4].text) == ('"Star Wars is a film', 'A New Hope"')


@pytest.mark.parametrize("form", ["csv", "tsv"])
@pytest.mark.parametrize("stray", [1, 3, 198, 200])
@pytest.mark.parametrize("text", ['"Star Wars is a film', '"Star" Wars', '"a" "b', '"'])
def test_a_stray_quote_costs_its_own_line_alone(tmp_path, form, stray, text):
    path = tmp_path / f"in.{form}"
    mark = "\t" if form == "tsv" else ","
    lines = [f"id{mark}text", *(f"{i}{mark}passage {i}" for i in range(1, 201))]
    lines[stray] = f"{stray}{mark}{text}"
    path.write_text("\n".join(lines) + "\n")
    records = list(Source(path, quoting=True))
    assert [record.line for record in records] == list(range(2, 202))
    assert [record.line for record in records if record.error is not None] == [stray + 1]
    assert text in records[stray - 1].raw


def test_a_row_of_several_lines_and_too_many_cells_costs_its_first_line(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text('id,text\n1,"opened\n2,two\n3,closed",more\n4,four\n')
    records = list(Source(path))
    assert [(r.line, r.text) for r in records] == [(2, ""), (3, "two"), (4, ""), (5, "four")]
    assert "3 fields, but the header has 2" in records[0].error


def test_a_quote_that_stays_open_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("embedlm.data.tables.LONGEST", 1000)
    path = tmp_path / "in.csv"
    rows = "".join(f"{i},passage {i}\n" for i in range(500))
    path.write_text(f'id,text\n0,"open\n{rows}last,"fine\nand long{"x" * 2000}"\n')
    records = list(Source(path))
    assert [r.line for r in records if r.error is not None] == [2]
    assert len(records) == 502


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv", "parquet"])
@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (Fields("body", "kee"), "'kee'.*Did you mean 'key'"),
        (Fields("body", "key", ("titel",)), "'titel'.*Did you mean 'title'"),
    ],
)
def test_a_mistyped_field_is_refused(tmp_path, monkeypatch, form, fields, told):
    data = written(form, ROWS, quoting=form == "csv")
    path = tmp_path / f"in.{form}"
    path.write_bytes(data)
    with pytest.raises(InputError, match=told):
        Source(path, fields).check_fields()
    with pytest.raises(InputError, match=told):
        list(Source(path, fields))
    Source(path, Fields("body")).check_fields()  # the default id may be missing
    if form != "parquet":
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        with pytest.raises(InputError, match=told):
            list(Source("-", fields, form))


def test_a_field_that_a_later_record_has_is_accepted(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a"}\n{broken\n{"text": "b", "key": 7}\n')
    source = Source(path, Fields(id="key"))
    source.check_fields()
    assert [json.loads(r.columns).get("id") for r in source if r.error is None] == [1, 7]


def test_options_that_a_form_cannot_honour_are_refused(tmp_path):
    (tmp_path / "in.jsonl").write_text("")
    (tmp_path / "in.md").write_text("")
    with pytest.raises(InputError, match=r"quoting was given.*only \.csv and \.tsv"):
        Source(tmp_path / "in.jsonl", quoting=True)
    with pytest.raises(InputError, match=r"a \.md file has no field 'key'"):
        Source(tmp_path / "in.md", Fields(id="key")).check_fields()
    with pytest.raises(InputError, match=r"format 'jsnl' is not known.*Did you mean 'jsonl'"):
        Source(tmp_path / "in.jsonl", form="jsnl")
    with pytest.raises(InputError, match=r"format 'jsonl\.zip' is not known"):
        Source(tmp_path / "in.jsonl", form="jsonl.zip")
    with pytest.raises(InputError, match=r"is not there.*nor with \.gz, \.xz, \.zst"):
        Source(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="parquet cannot be read from a stream"):
        Source("-", form="parquet")


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("damage", ["cut", "flip", "other"])
def test_damaged_compression_is_told_and_gives_no_short_read(tmp_path, compression, damage):
    path = tmp_path / f"in.jsonl{compression}"
    text = "".join(json.dumps({"text": f"{i * 7919}"}) + "\n" for i in range(50_000))
    data = bytearray(packed(text.encode(), compression))
    if compression == ".zst":  # whose checksum is an option
        options = {zstd().CompressionParameter.checksum_flag: 1}
        data = bytearray(zstd().compress(text.encode(), options=options))
    data[len(data) // 2] ^= 255
    path.write_bytes({"cut": data[: len(data) // 2], "flip": data, "other": b"no archive"}[damage])
    with pytest.raises(InputError, match=r"cannot read the input .*in\.jsonl"):
        list(Source(path))


def test_zstandard_without_its_extra_is_told(tmp_path, monkeypatch):
    if sys.version_info >= (3, 14):
        pytest.skip("Python brings it")
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    path = tmp_path / "in.txt.zst"
    path.write_bytes(b"x")
    with pytest.raises(MissingExtraError, match=r'pip install "embedlm\[zst\]"'):
        list(Source(path))


# -- readers on top -------------------------------------------------------------------------------


def test_texts_and_rows_stop_at_a_bad_record_with_file_and_line(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a"}\n\n[1]\n')
    with pytest.raises(RecordError, match=r"in\.jsonl:3: not a JSON object"):
        list(read_rows(path))
    with pytest.raises(RecordError, match=r"in\.jsonl:3: a JSON list, not an object"):
        list(read_texts(path))


GROUPS = [{"query": f"q{i}", "positive": f"p{i}", "negative": f"n{i}"} for i in range(3)]


@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("compression", ["", ".gz", ".xz"])
def test_training_records_come_from_every_form(tmp_path, form, compression):
    path = tmp_path / f"in.{form}{compression}"
    path.write_bytes(packed(written(form, GROUPS), compression))
    records = read_records(path)
    assert (records.name, records.kind, records.has_negatives) == ("in", "groups", True)
    assert [group.negatives for group in records.items] == [("n0",), ("n1",), ("n2",)]
    pairs = [{"s1": "a", "s2": "b", "score": "0.5"}, {"s1": "c", "s2": "d", "score": "1"}]
    path.write_bytes(packed(written(form, pairs), compression))
    assert [pair.score for pair in read_records(path).items] == [0.5, 1.0]


def test_an_empty_cell_is_no_negative(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("query,positive,negative\na,b,c\nd,e,\n")
    assert [group.negatives for group in read_records(path).items] == [("c",), ()]

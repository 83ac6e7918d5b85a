"""Jobs over files: formats, records, and what is refused."""

import io
import json
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse

import embedlm
from embedlm.bulk import encode_file
from embedlm.data.source import Fields, Source
from embedlm.errors import InputError, JobError, RecordError
from tests.command import sentences

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

TEXTS = ["plants make food", "light", "", "the quick brown fox", "light", "a  b\tc "]
SUFFIXES = ("npy", "npz", "jsonl", "parquet")


def read_rows(path):
    """Return the rows of an output of JSON lines."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def read_dense(path):
    """Return the dense vectors of any output."""
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".npz":
        return np.load(path)["dense"]
    if path.suffix == ".jsonl":
        rows = read_rows(path)
        return np.array([row["dense"] for row in rows], dtype=np.float32)
    table = parquet.read_table(path)
    return np.array(table["dense"].to_pylist(), dtype=np.float32)


# -- what comes out -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("block", [2, 1000])
def test_a_file_holds_what_encode_gives(model, tmp_path, suffix, block):
    (tmp_path / "in.txt").write_text("\n".join(TEXTS))
    out = tmp_path / f"out.{suffix}"
    report = encode_file(model, tmp_path / "in.txt", out, block=block, normalize=True)
    assert (report.rows, report.rejected, report.dim) == (6, 0, 32)
    found = read_dense(out)
    np.testing.assert_allclose(found, model.encode(TEXTS, normalize=True), atol=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.txt", f"out.{suffix}"]


@pytest.mark.parametrize("suffix", ["npz", "jsonl", "parquet"])
def test_all_heads_are_written(model, tmp_path, suffix):
    (tmp_path / "in.txt").write_text("\n".join(TEXTS))
    out = tmp_path / f"out.{suffix}"
    heads = ["dense", {"sparse": {"top_k": 7}}, "multi_vector"]
    encode_file(model, tmp_path / "in.txt", out, heads=heads, block=4)
    wanted = model.encode(TEXTS, heads=heads)
    np.testing.assert_allclose(read_dense(out), wanted.dense, atol=1e-6)
    if suffix == "npz":
        sparse = scipy.sparse.load_npz(out)
        arrays = np.load(out)
        at = arrays["offsets"]
        tokens = [arrays["multi_vector"][a:b] for a, b in pairwise(at)]
    else:
        rows = parquet.read_table(out).to_pylist() if suffix == "parquet" else read_rows(out)
        if suffix == "parquet":
            for row in rows:
                pairs = zip(row["sparse_indices"], row["sparse_values"], strict=True)
                row["sparse"] = {str(index): value for index, value in pairs}
        sparse = scipy.sparse.lil_matrix(wanted.sparse.shape, dtype=np.float32)
        for place, row in enumerate(rows):
            for index, value in row["sparse"].items():
                sparse[place, int(index)] = value
        tokens = [np.array(row["multi_vector"], dtype=np.float32) for row in rows]
    np.testing.assert_allclose(sparse.toarray(), wanted.sparse.toarray(), atol=1e-5)
    for found, right in zip(tokens, wanted.multi_vector, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-6)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_input_gives_no_rows(model, tmp_path, suffix):
    (tmp_path / "in.txt").write_text("")
    out = tmp_path / f"out.{suffix}"
    assert encode_file(model, tmp_path / "in.txt", out).rows == 0
    assert len(read_dense(out)) == 0
    if suffix == "npy":
        assert np.load(out).shape == (0, 32)


def test_json_numbers_give_the_floats_back_exactly(model, tmp_path, source):
    for suffix in ("npy", "jsonl"):
        encode_file(model, source, tmp_path / f"out.{suffix}", block=64)
    np.testing.assert_array_equal(read_dense(tmp_path / "out.jsonl"), np.load(tmp_path / "out.npy"))


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_integer_ranges_are_those_that_were_fitted(tiny_llama, tmp_path, source, precision):
    model, out = embedlm.load(tiny_llama, "plain-mean", device="cpu"), tmp_path / "out.npy"
    with pytest.raises(InputError, match=r"fit_ranges.*--calibration"):
        encode_file(model, source, out, block=64, precision=precision)
    model.fit_ranges(sentences(80, seed=3))
    encode_file(model, source, out, block=64, precision=precision, dim=16, restart=True)
    texts = source.read_text().splitlines()
    np.testing.assert_array_equal(np.load(out), model.encode(texts, precision=precision, dim=16))
    # A text's integers do not depend on the texts that it came with.
    (tmp_path / "one.txt").write_text(texts[-1])
    encode_file(model, tmp_path / "one.txt", tmp_path / "one.npy", precision=precision, dim=16)
    np.testing.assert_array_equal(np.load(tmp_path / "one.npy")[0], np.load(out)[-1])


def test_other_ranges_are_another_job(tiny_llama, tmp_path, source, monkeypatch):
    model, out = embedlm.load(tiny_llama, "plain-mean", device="cpu"), tmp_path / "out.npy"
    model.fit_ranges(sentences(80, seed=3))
    encode = type(model).encode
    with monkeypatch.context() as patch:
        calls = iter(range(100))

        def stopping(self, texts, *args, **options):
            if texts and next(calls) > 1:
                raise KeyboardInterrupt
            return encode(self, texts, *args, **options)

        patch.setattr(type(model), "encode", stopping)
        with pytest.raises(KeyboardInterrupt):
            encode_file(model, source, out, block=64, precision="int8")
    model.fit_ranges(sentences(80, seed=4))
    with pytest.raises(JobError, match="ranges was"):
        encode_file(model, source, out, block=64, precision="int8")


def test_integer_ranges_are_those_of_the_calibration_texts(model, tmp_path, source):
    texts = sentences(50, seed=5)
    (tmp_path / "sample.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    out = tmp_path / "out.npy"
    encode_file(
        model, source, out, precision="int8", calibration=tmp_path / "sample.jsonl", block=300
    )
    wanted = embedlm.quantize(
        model.encode(source.read_text().splitlines()), "int8", calibration=model.encode(texts)
    )
    np.testing.assert_array_equal(np.load(out), wanted)
    (tmp_path / "none.txt").write_text("")
    with pytest.raises(InputError, match="holds no texts"):
        encode_file(model, source, out, precision="int8", calibration=tmp_path / "none.txt")
    (tmp_path / "one.txt").write_text("a text")
    with pytest.raises(InputError, match="tell no ranges"):
        encode_file(model, source, out, precision="int8", calibration=tmp_path / "one.txt")


def test_an_option_of_dense_vectors_is_refused_without_them(model, tmp_path, source):
    for options in [{"precision": "int8"}, {"dim": 4}, {"normalize": True}]:
        with pytest.raises(InputError, match="changes dense vectors"):
            encode_file(model, source, tmp_path / "o.npz", heads="multi_vector", **options)


@pytest.mark.parametrize("precision", ["binary", "ubinary", "float16"])
def test_other_precisions_are_encodes_own(model, tmp_path, precision):
    (tmp_path / "in.txt").write_text("\n".join(TEXTS))
    for suffix in SUFFIXES:
        encode_file(model, tmp_path / "in.txt", tmp_path / f"o.{suffix}", precision=precision)
        found = read_dense(tmp_path / f"o.{suffix}")
        np.testing.assert_array_equal(found, model.encode(TEXTS, precision=precision))


# -- records --------------------------------------------------------------------------------------


def write_table(path, rows):
    """Write the same rows in any format of records."""
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    else:
        import csv

        with path.open("w", newline="", encoding="utf-8-sig") as handle:
            writer = csv.DictWriter(
                handle, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ","
            )
            writer.writeheader()
            writer.writerows(rows)


ROWS = [
    {"key": f"k{i}", "body": text, "title": f'T "{i}", é\n\u2028'} for i, text in enumerate(TEXTS)
]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("target", ["jsonl", "parquet"])
def test_records_keep_their_ids_and_fields(model, tmp_path, suffix, target):
    source, out = tmp_path / f"in.{suffix}", tmp_path / f"out.{target}"
    write_table(source, ROWS)
    quoting = True if suffix in ("csv", "tsv") else None
    names = {"text_field": "body", "id_field": "key", "keep": ["title"], "quoting": quoting}
    encode_file(model, source, out, **names, block=4)
    rows = read_rows(out) if target == "jsonl" else parquet.read_table(out).to_pylist()
    assert [row["id"] for row in rows] == [row["key"] for row in ROWS]
    assert [row["title"] for row in rows] == [row["title"] for row in ROWS]
    np.testing.assert_allclose(read_dense(out), model.encode(TEXTS), atol=1e-6)


def test_without_an_id_the_line_is_the_id(model, tmp_path):
    (tmp_path / "in.jsonl").write_text('"one"\n\n{"text": "two"}\n{"text": "three", "id": "x"}\n')
    encode_file(model, tmp_path / "in.jsonl", tmp_path / "out.parquet")
    # Of several types, so all are strings.
    assert parquet.read_table(tmp_path / "out.parquet")["id"].to_pylist() == ["1", "3", "x"]
    encode_file(model, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [1, 3, "x"]


def test_lines_end_where_they_should(tmp_path):
    (tmp_path / "in.txt").write_bytes("\ufeffa\r\nb\u2028c\n\n d\x85e".encode())
    assert [r.text for r in Source(tmp_path / "in.txt")] == ["a", "b\u2028c", "", " d\x85e"]


BAD = {
    "jsonl": (
        b'{"text": "fine"}\n{"text": 5}\n{broken\n{"body": "x"}\n["a"]\n{"text": "\\ud800"}\n'
        b'{"text": "\xff"}\n{"text": null}\n{"text": "fine too", "id": "\\udfff"}\n'
        b'{"text": "end"}\n',
        {
            2: "is int, not a string",
            3: "not valid JSON",
            4: "no field 'text'; there are: 'body'",
            5: "a JSON list, not an object",
            6: "lone surrogate at character 0",
            7: "not valid UTF-8 at byte 10",
            8: "is NoneType, not a string",
            9: "its id or a kept field holds a lone surrogate",
        },
    ),
    "txt": (b"fine\n\xff\xfe\nfine too\n", {2: "not valid UTF-8 at byte 0"}),
    "csv": (
        b'text,id\nfine,1\n"two\nlines",2\nshort\n\xff,4\nlong,5,6\nend,7\n"never closed,8\n',
        {5: "1 fields, but the header has 2", 6: "not valid UTF-8", 7: "3 fields", 9: "CSV"},
    ),
}


@pytest.mark.parametrize("suffix", BAD)
def test_bad_records_are_told_with_file_and_line(model, tmp_path, suffix):
    data, wrong = BAD[suffix]
    source = tmp_path / f"in.{suffix}"
    source.write_bytes(data)
    place, reason = next(iter(wrong.items()))
    with pytest.raises(RecordError, match="--rejects") as caught:
        encode_file(model, source, tmp_path / "out.npy")
    assert str(caught.value).startswith(f"{source}:{place}: ")
    assert reason in str(caught.value)
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("suffix", BAD)
@pytest.mark.parametrize("block", [1, 2, 100])
def test_bad_records_are_set_aside_by_choice(model, tmp_path, suffix, block):
    data, wrong = BAD[suffix]
    source, rejects = tmp_path / f"in.{suffix}", tmp_path / "bad.jsonl"
    source.write_bytes(data)
    report = encode_file(model, source, tmp_path / "out.jsonl", rejects=rejects, block=block)
    found = read_rows(rejects)
    assert {row["line"]: row["file"] for row in found} == dict.fromkeys(wrong, str(source))
    for row in found:
        assert wrong[row["line"]] in row["error"]
    good = [record.text for record in Source(source) if record.error is None]
    assert (report.rows, report.rejected) == (len(good), len(wrong))
    np.testing.assert_allclose(read_dense(tmp_path / "out.jsonl"), model.encode(good), atol=1e-6)


def test_a_text_that_gives_nan_is_a_bad_record(model_folder, tmp_path):
    import torch

    model = embedlm.load(model_folder("llama"), "plain-mean", device="cpu")
    token = model.render(["Q"]).ids[0][-1]
    with torch.no_grad():
        model.backbone.network.get_input_embeddings().weight[token] = float("nan")
    source = tmp_path / "in.txt"
    source.write_text("light\nQ\nplants make food\n")
    with pytest.raises(RecordError, match=r"in\.txt:2: the model gave NaN"):
        encode_file(model, source, tmp_path / "out.npy")
    report = encode_file(
        model,
        source,
        tmp_path / "out.npz",
        rejects=tmp_path / "bad.jsonl",
        heads=["dense", "multi_vector"],
    )
    assert (report.rows, report.rejected) == (2, 1)
    assert np.isfinite(np.load(tmp_path / "out.npz")["dense"]).all()


def test_tables_name_their_columns(model, tmp_path):
    for suffix in ("csv", "parquet"):
        write_table(tmp_path / f"in.{suffix}", ROWS)
        with pytest.raises(InputError, match="no column 'text'; there are: key, body, title"):
            encode_file(model, tmp_path / f"in.{suffix}", tmp_path / "out.npy")
        with pytest.raises(InputError, match=r"no column 'titel'.*Did you mean 'title'"):
            encode_file(
                model,
                tmp_path / f"in.{suffix}",
                tmp_path / "out.jsonl",
                text_field="body",
                keep=["titel"],
            )
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 this is no parquet file PAR1")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        encode_file(model, tmp_path / "bad.parquet", tmp_path / "out.npy")


def test_a_truncated_parquet_file_is_told(model, tmp_path):
    write_table(tmp_path / "in.parquet", ROWS)
    data = (tmp_path / "in.parquet").read_bytes()
    (tmp_path / "in.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="cannot be read as parquet"):
        encode_file(model, tmp_path / "in.parquet", tmp_path / "out.npy")


def test_a_stream_is_read_line_by_line(tmp_path, monkeypatch):
    data = io.TextIOWrapper(io.BytesIO(b'{"t": "a"}\n{"t": "b"}\n'))
    monkeypatch.setattr("sys.stdin", data)
    source = Source("-", Fields("t"), "jsonl")
    assert [record.text for record in source] == ["a", "b"]
    assert source.total is None


@pytest.mark.parametrize("quoting", [None, True])
def test_a_quote_in_a_tsv_takes_no_neighbour_along(model, tmp_path, quoting):
    source, rejects = tmp_path / "in.tsv", tmp_path / "bad.jsonl"
    lines = ["id\ttext", *(f"{i}\tpassage {i}" for i in range(1, 201))]
    lines[3] = '3\t"Star Wars is a film'
    source.write_text("\n".join(lines) + "\n")
    report = encode_file(model, source, tmp_path / "o.jsonl", rejects=rejects, quoting=quoting)
    assert (report.rows, report.rejected) == ((200, 0) if quoting is None else (199, 1))
    assert [row["line"] for row in read_rows(rejects)] == ([] if quoting is None else [4])
    ids = [row["id"] for row in read_rows(tmp_path / "o.jsonl")]
    assert ids == [str(i) for i in range(1, 201) if quoting is None or i != 3]


def test_a_record_that_is_lost_on_the_way_is_told(model, source, tmp_path, monkeypatch):
    from embedlm.bulk.blocks import BlockEncoder
    from embedlm.errors import JobError

    encode = BlockEncoder.__call__
    monkeypatch.setattr(
        BlockEncoder, "__call__", lambda self, records, f: encode(self, records[1:], f)
    )
    with pytest.raises(JobError, match="300 records were read, but 299 are in the output"):
        encode_file(model, source, tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize("compression", [".gz", ".xz"])
def test_a_compressed_file_gives_the_bytes_of_the_plain_one(model, source, tmp_path, compression):
    import gzip
    import lzma

    pack = {".gz": gzip.compress, ".xz": lzma.compress}[compression]
    packed = tmp_path / f"other.txt{compression}"
    packed.write_bytes(pack(source.read_bytes()))
    for path, out in ((source, "a.jsonl"), (packed, "b.jsonl")):
        encode_file(model, path, tmp_path / out, block=64, compile=False)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()

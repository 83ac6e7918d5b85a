"""Jobs over files: what is refused, before anything is written."""

import os

import pytest

from embedlm.bulk import encode_file
from embedlm.errors import InputError
from tests.bulk.test_files import ROWS, write_table

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "options", "told"),
    [
        ("out.txt", {}, r"must end in one of \.npy, \.npz, \.jsonl, \.parquet"),
        ("out.npz", {"keep": ["text"]}, r"a \.npz file cannot keep fields"),
        ("out.npy", {"heads": ["multi_vector"]}, r"\.npy file holds dense vectors alone"),
        ("out.npy", {"heads": ["dense", "sparse"]}, r"\.npy file holds dense vectors alone"),
        ("out.npy", {"precision": "int4"}, "precision 'int4' is not known; allowed: float32"),
        ("out.npy", {"dim": 33}, "dim is 33; allowed are 1 to 32"),
        ("out.npy", {"role": "qery"}, "role 'qery' is not defined.*Did you mean 'query'"),
        ("out.npy", {"rol": "query"}, "'rol' is not an option of encode_file. Did you mean 'role'"),
        ("out.npy", {"block": 0}, "block is 0; give a number of records above 0"),
        ("out.npy", {"block": -1}, "block is -1"),
        ("no/out.npy", {}, "the output's folder .* does not exist; create it first"),
        ("out.npy", {"rejects": "no/bad.jsonl"}, "the rejects file's folder 'no' does not exist"),
        ("out.jsonl", {"keep": ["dense"]}, "'dense' cannot be kept: an output column"),
        ("out.jsonl", {"keep": ["title"]}, "a .txt file has no field 'title' to keep"),
        ("out.npy", {"input_format": "xml"}, "input format 'xml' is not known; allowed: txt"),
        ("out.npy", {"instruction": "x"}, "the recipe's template for this role has no"),
        ("out.npy", {"id_field": "key"}, r"a \.txt file has no field 'key'"),
        ("out.npy", {"quoting": True}, "quoting was given for .*only .csv and .tsv"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    model, source, tmp_path, target, options, told
):
    with pytest.raises(InputError, match=told):
        encode_file(model, source, tmp_path / target, **options)
    assert not (tmp_path / target).exists()


def test_inputs_that_cannot_be_read_are_refused(model, source, tmp_path):
    with pytest.raises(InputError, match="No such file"):
        encode_file(model, tmp_path / "none.txt", tmp_path / "out.npy")
    with pytest.raises(InputError, match="is a folder"):
        encode_file(model, tmp_path, tmp_path / "out.npy")
    (tmp_path / "in.doc").write_text("x")
    with pytest.raises(InputError, match=r"ends in none of \.txt.*--format"):
        encode_file(model, tmp_path / "in.doc", tmp_path / "out.npy")
    if os.path.exists("/proc/self/mem"):  # opens, but its first byte cannot be read
        with pytest.raises(InputError, match="cannot read the input '/proc/self/mem'"):
            encode_file(model, "/proc/self/mem", tmp_path / "out.npy", input_format="txt")
    same = source.rename(tmp_path / "in.jsonl")
    with pytest.raises(InputError, match="the output is the input itself"):
        encode_file(model, same, same)
    (tmp_path / "dir.npy").mkdir()
    with pytest.raises(InputError, match="is a folder; give a file name"):
        encode_file(model, same, tmp_path / "dir.npy")


def test_no_output_may_be_an_input_or_another_output(model, source, tmp_path):
    sample = tmp_path / "sample.jsonl"
    sample.write_text('"a text"\n')
    out = tmp_path / "out.jsonl"
    for target, options, told in (
        (out, {"rejects": out}, "the rejects file is the output itself"),
        (out, {"rejects": tmp_path / "." / "out.jsonl"}, "the rejects file is the output itself"),
        (out, {"rejects": source}, "the rejects file is the input itself"),
        (sample, {"calibration": sample}, "the output is the calibration file itself"),
    ):
        with pytest.raises(InputError, match=told):
            encode_file(model, source, target, **options)
    (tmp_path / "link.txt").symlink_to(source)
    with pytest.raises(InputError, match="the rejects file is the input itself"):
        encode_file(model, tmp_path / "link.txt", out, rejects=source)
    assert len(source.read_text().splitlines()) == 300


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("name", ["id_field", "keep"])
def test_a_field_that_no_record_has_is_refused_before_any_work(model, tmp_path, suffix, name):
    write_table(tmp_path / f"in.{suffix}", ROWS)
    options = {"id_field": "kay"} if name == "id_field" else {"keep": ["kay"]}
    with pytest.raises(InputError, match=r"'kay'.*Did you mean 'key'"):
        encode_file(
            model, tmp_path / f"in.{suffix}", tmp_path / "out.jsonl", text_field="body", **options
        )
    assert [path.name for path in tmp_path.iterdir()] == [f"in.{suffix}"]

"""Files whose records name images."""

import json

import numpy as np
import pytest

import embedlm
from embedlm.bulk import encode_file
from embedlm.errors import InputError, JobError, RecordError, UnsupportedError
from tests.vision_models import build_colqwen2, picture


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "images").mkdir(parents=True)
    picture(90, 60).save(folder / "images/a.png")
    picture(60, 90, 1).save(folder / "b.jpg")
    records = [
        {"id": "a", "image": "images/a.png"},
        {"id": "b", "image": "b.jpg", "text": "a dog"},
        {"id": "c", "text": "only a text", "image": None},
        {"id": "d", "text": "another text", "image": ""},
        {"id": "e", "text": "and another"},
    ]
    return written(folder / "corpus.jsonl", records)


def written(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_records_with_images_are_encoded(seeing, corpus, tmp_path):
    done = encode_file(seeing, corpus, tmp_path / "out.npy", image_field="image", role="document")
    assert (done.rows, done.rejected) == (5, 0)
    folder = corpus.parent
    items = [{"image": folder / "images/a.png"}, {"image": folder / "b.jpg", "text": "a dog"}]
    expected = seeing.encode([*items, "only a text", "another text", "and another"])
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=2e-6)


def test_a_table_may_hold_images_alone(seeing, corpus, tmp_path):
    table = corpus.with_suffix(".csv")
    table.write_text("id,image\na,images/a.png\nb,b.jpg\n")
    encode_file(seeing, table, tmp_path / "out.npy", image_field="image")
    images = [{"image": table.parent / "images/a.png"}, {"image": table.parent / "b.jpg"}]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), seeing.encode(images), atol=2e-6)


def test_the_command_line(vision_folder, corpus, run, seeing, tmp_path):
    model = ("-m", vision_folder("qwen3_vl"), "-r", "qwen3-vl-embedding", "--device", "cpu")
    out = tmp_path / "out.jsonl"
    done = run("encode", corpus, "--image-field", "image", *model, "-o", out)
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", "b", "c", "d", "e"]
    alone = seeing.encode({"image": corpus.parent / "images/a.png"})
    np.testing.assert_allclose(lines[0]["dense"], alone, atol=1e-5)


def test_pages_of_a_file_have_token_vectors(corpus, tmp_path):
    model = embedlm.load(build_colqwen2(tmp_path / "model"), device="cpu")
    pages = written(corpus, [{"image": "b.jpg"}, {"image": "images/a.png"}])
    encode_file(model, pages, tmp_path / "out.npz", image_field="image", role="document")
    found = np.load(tmp_path / "out.npz")
    alone = model.encode_document({"image": corpus.parent / "b.jpg"}).multi_vector[0]
    np.testing.assert_allclose(found["multi_vector"][: found["offsets"][1]], alone, atol=1e-5)


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("../secret.png", r"names the path '../secret.png'; only paths inside its folder are read"),
        ("/etc/hostname", "names the path '/etc/hostname'; only paths inside"),
        ("link.png", "names the path 'link.png'; only paths inside"),
        ("none.png", "field 'image': the image 'none.png' cannot be read .No such file"),
        ("images", "field 'image': the image 'images' cannot be read"),
        ("corpus.jsonl", "the image of line 2 .*corpus.jsonl'. cannot be read as an image"),
        ("half.png", "the image of line 2 .*half.png'. cannot be read as an image"),
        (["b.jpg"], "field 'image' is list, not the path of an image"),
        ("a\0b", "names the path"),
    ],
)
def test_a_bad_image_is_a_bad_record(seeing, corpus, tmp_path, value, told):
    folder = corpus.parent
    picture(9, 9).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "half.png").write_bytes((folder / "images/a.png").read_bytes()[:900])
    written(corpus, [{"image": "b.jpg"}, {"image": value, "text": "a dog"}, {"text": "light"}])
    how = {"image_field": "image"}
    with pytest.raises((RecordError, InputError), match=told):
        encode_file(seeing, corpus, tmp_path / "out.npy", **how)
    aside = tmp_path / "bad.jsonl"
    done = encode_file(seeing, corpus, tmp_path / "other.npy", rejects=aside, **how)
    assert (done.rows, done.rejected) == (2, 1)
    (reject,) = [json.loads(line) for line in aside.read_text().splitlines()]
    assert reject["line"] == 2
    expected = seeing.encode([{"image": folder / "b.jpg"}, "light"])
    np.testing.assert_allclose(np.load(tmp_path / "other.npy"), expected, atol=2e-6)


def test_a_text_that_is_missing_without_an_image_is_a_bad_record(seeing, corpus, tmp_path):
    written(corpus, [{"image": "b.jpg"}, {"id": "b"}])
    with pytest.raises(RecordError, match=r"corpus.jsonl:2: no field 'text'; there are: 'id'"):
        encode_file(seeing, corpus, tmp_path / "out.npy", image_field="image")


def test_a_field_that_no_record_has_is_refused(seeing, corpus, tmp_path):
    with pytest.raises(InputError, match=r"no record of .* has the field 'picture'"):
        encode_file(seeing, corpus, tmp_path / "out.npy", image_field="picture")
    (tmp_path / "in.txt").write_text("light\n")
    with pytest.raises(InputError, match=r"a .txt file has no field 'image'"):
        encode_file(seeing, tmp_path / "in.txt", tmp_path / "out.npy", image_field="image")


def test_a_model_of_texts_refuses_a_file_of_images(tiny_llama, corpus, tmp_path):
    model = embedlm.load(tiny_llama, "plain-last", device="cpu")
    with pytest.raises(UnsupportedError, match="reads texts alone"):
        encode_file(model, corpus, tmp_path / "out.npy", image_field="image")


def test_a_job_notices_that_an_image_has_changed(seeing, corpus, tmp_path, monkeypatch):
    out = tmp_path / "out.npy"
    how = {"image_field": "image", "block": 2}
    from embedlm.bulk import files

    kept, blocks = files.save_block, []

    def stopped(job, index, block):
        if index == 1:
            raise KeyboardInterrupt
        blocks.append(index)
        kept(job, index, block)

    monkeypatch.setattr(files, "save_block", stopped)
    with pytest.raises(KeyboardInterrupt):
        encode_file(seeing, corpus, out, **how)
    monkeypatch.undo()
    assert blocks == [0]
    image = corpus.parent / "images/a.png"
    before = image.read_bytes()
    picture(90, 60, 5).save(image)
    with pytest.raises(JobError, match="has changed since the job was begun"):
        encode_file(seeing, corpus, out, **how)
    image.write_bytes(before)
    assert encode_file(seeing, corpus, out, **how).resumed == 1

"""Indexes with images: made, found in, changed, stopped, refused; `encode` is the measure."""

import json
import shutil
import sqlite3

import pytest

import embedlm
from embedlm.errors import InputError, RecordError, UnsupportedError
from embedlm.search import Chunking, Index, build_index, delete_documents
from embedlm.search import work as work_module
from embedlm.vision.reader import ImageReader
from tests.vision.test_files import written
from tests.vision_models import build_clip, build_colqwen2, picture

HOW = {"store": "exact"}


@pytest.fixture
def album(tmp_path):
    """Return a folder of images, texts and records, and what each is."""
    folder = tmp_path / "album"
    (folder / "trip").mkdir(parents=True)
    picture(90, 60).save(folder / "a.png")
    picture(60, 90, 1).save(folder / "trip/b.JPG", "JPEG")
    picture(64, 64, 2).save(folder / "trip/c.gif")
    picture(70, 70, 3).save(folder / "trip/d.webp")
    written(
        folder / "trip/records.jsonl",
        [
            {"id": 1, "image": "c.gif", "text": "a red bicycle", "year": 2001},
            {"id": 2, "text": "the bicycle is blue", "image": None},
            {"id": 3, "image": "d.webp", "text": "  "},
        ],
    )
    (folder / "notes.md").write_text("# Notes\n\nA dog runs.\n")
    return folder


def items_of(folder):
    """Return what `encode` takes for each document of the album, by id."""
    trip = folder / "trip"
    return {
        "a.png": {"image": folder / "a.png"},
        "trip/b.JPG": {"image": trip / "b.JPG"},
        "trip/c.gif": {"image": trip / "c.gif"},
        "trip/d.webp": {"image": trip / "d.webp"},
        1: {"image": trip / "c.gif", "text": "a red bicycle"},
        2: "the bicycle is blue",
        3: {"image": trip / "d.webp"},
        "notes.md:3": "Notes\nA dog runs.",
    }


def scores_of(model, items, query, **options):
    """Return how the library scores each item for a query."""
    asked = model.encode_query([query], **options)
    found = model.encode_document(list(items.values()))
    return dict(zip(items, model.similarity(asked, found)[0].tolist(), strict=True))


def alike(hits, expected):
    """Check hits against scores by id."""
    assert {hit.id for hit in hits} == set(expected)
    for hit in hits:
        assert hit.score == pytest.approx(expected[hit.id], abs=2e-5)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize("store", ["exact", "edge"])
def test_texts_and_images_find_images(seeing, album, tmp_path, store):
    report = build_index(album, tmp_path / "i", seeing, store=store, image_field="image")
    assert (report.documents, report.added) == (8, 8)
    items = items_of(album)
    queries = [
        "a red bicycle",
        picture(90, 60),
        {"image": (album / "a.png").read_bytes()},
        {"image": str(album / "trip/b.JPG"), "text": "a dog"},
    ]
    with Index.open(tmp_path / "i", seeing) as index:
        for query in queries:
            found = index.search(query, 9, mode="dense", instruction="Find it.")
            alike(found, scores_of(seeing, items, query, instruction="Find it."))
        together = index.search_all(queries, 9, mode="dense")
        assert [[(hit.id, hit.image) for hit in hits] for hits in together] == [
            [(hit.id, hit.image) for hit in index.search(one, 9, mode="dense")] for one in queries
        ]
        shown = {hit.id: (hit.image, hit.text) for hit in together[0]}
        assert shown[1] == ("trip/c.gif", "a red bicycle")
        assert shown[3] == ("trip/d.webp", "")
        assert shown["a.png"] == ("a.png", "")
        assert shown[2] == (None, "the bicycle is blue")
        (one,) = [hit for hit in together[0] if hit.id == 1]
        assert one.metadata == {"year": 2001}
        assert one.as_dict()["image"] == "trip/c.gif"


def test_the_mode_that_is_taken_where_none_is_named(seeing, album, tmp_path):
    build_index(album, tmp_path / "i", seeing, image_field="image", **HOW)
    image = {"image": album / "a.png"}
    with Index.open(tmp_path / "i", seeing) as index:
        named = index.search("bicycle", 9, mode="hybrid")
        assert index.search("bicycle", 9) == named
        assert index.search(image, 9) == index.search(image, 9, mode="dense")
        both = {**image, "text": "bicycle"}
        assert index.search(both, 9) == index.search(both, 9, mode="hybrid")
        mixed = index.search_all(["bicycle", image], 9)
        assert mixed == [named, index.search(image, 9)]
        words = index.search("bicycle", 9, mode="bm25")
        assert [hit.id for hit in words] == [1, 2] or [hit.id for hit in words] == [2, 1]


def test_bm25_counts_as_if_images_without_words_were_not_there(seeing, album, tmp_path):
    build_index(album, tmp_path / "i", seeing, image_field="image", **HOW)
    texts = {1: "a red bicycle", 2: "the bicycle is blue", 4: "Notes\nA dog runs."}
    lines = [{"id": id_, "text": text} for id_, text in texts.items()]
    build_index(written(tmp_path / "t.jsonl", lines), tmp_path / "t", seeing, **HOW)
    with Index.open(tmp_path / "i", seeing) as index, Index.open(tmp_path / "t", seeing) as alone:
        for query in ("red bicycle", "a dog"):
            found, expected = (one.search(query, 9, mode="bm25") for one in (index, alone))
            assert [hit.score for hit in found] == [hit.score for hit in expected]


def test_the_command_line(vision_folder, seeing, album, run, tmp_path):
    model = ("-m", vision_folder("qwen3_vl"), "-r", "qwen3-vl-embedding", "--device", "cpu")
    done = run("index", album, "-o", tmp_path / "i", "--image-field", "image", *model)
    assert done.code == 0, done.err
    assert "8 documents in 8 passages; added 8, deleted 0" in done.out
    asked = ("search", tmp_path / "i", "--device", "cpu", "-k", "9")
    found = run(*asked, "--image", album / "a.png", "--json")
    assert found.code == 0, found.err
    hits = json.loads(found.out)["hits"]
    expected = scores_of(seeing, items_of(album), {"image": album / "a.png"})
    assert {hit["id"]: pytest.approx(hit["score"], abs=2e-5) for hit in hits} == expected
    assert {hit["id"]: hit.get("image") for hit in hits}[3] == "trip/d.webp"
    assert "image" not in next(hit for hit in hits if hit["id"] == 2)
    shown = run(*asked, "a red bicycle").out.splitlines()
    assert any(line.endswith("  a.png  a.png") for line in shown)
    assert any(line.endswith("  1  trip/c.gif  «a red bicycle»") for line in shown)
    both = run(*asked, "a red bicycle", "--image", album / "a.png", "--mode", "dense", "--json")
    query = {"image": album / "a.png", "text": "a red bicycle"}
    expected = scores_of(seeing, items_of(album), query)
    found = {hit["id"]: hit["score"] for hit in json.loads(both.out)["hits"]}
    assert found == pytest.approx(expected, abs=2e-5)
    for arguments, told in [
        (("--image", "none.png"), "is not there; give the path of an image file"),
        (("--image", album / "notes.md"), "cannot be read as an image"),
        (("--image", album / "a.png", "--mode", "bm25"), "an image alone has none"),
        (("--image", album / "a.png", "--mode", "hybrid"), "an image alone has none"),
        (("--image", album / "a.png", "--fusion", "rrf"), "--fusion and --weight are of a hybrid"),
    ]:
        assert told in run(*asked, *arguments).one_line()
    assert "--image and --at are for one" in run("search", album, "q", "--image", "a").one_line()


# -- changes --------------------------------------------------------------------------------------


def test_only_images_whose_bytes_are_new_are_embedded(seeing, album, tmp_path):
    def again(**options):
        done = build_index(album, tmp_path / "i", seeing, image_field="image", **HOW, **options)
        return done.added, done.moved, done.deleted, done.gone

    assert again() == (8, 0, 0, 0)
    assert again() == (0, 0, 0, 0)
    (album / "a.png").rename(album / "z.png")  # keeps its vectors
    assert again(sync=True) == (0, 1, 1, 0)
    picture(80, 60, 9).save(album / "trip/c.gif")  # an image, and the record that names it
    assert again() == (2, 0, 0, 0)
    items = items_of(album)
    items["z.png"] = {"image": album / "z.png"}
    del items["a.png"]
    with Index.open(tmp_path / "i", seeing) as index:
        found = index.search("a bicycle", 9, mode="dense")
        alike(found, scores_of(seeing, items, "a bicycle"))
    assert delete_documents(tmp_path / "i", ["z.png", 3]).documents == 6
    with Index.open(tmp_path / "i", seeing) as index:
        assert not {"z.png", 3} & {hit.id for hit in index.search("a bicycle", 9)}
    (album / "trip/b.JPG").unlink()
    # d.webp is held by another document, whose vectors the record takes; b.JPG stays.
    assert again() == (1, 1, 0, 1)


def test_a_run_that_was_stopped_goes_on(seeing, album, tmp_path, monkeypatch):
    monkeypatch.setattr(work_module, "BLOCK", 16)  # an image each
    read, seen = ImageReader.read, []

    def stopped(self, image, options):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(image.name)
        return read(self, image, options)

    monkeypatch.setattr(ImageReader, "read", stopped)
    with pytest.raises(KeyboardInterrupt):
        build_index(album, tmp_path / "i", seeing, image_field="image", **HOW)
    monkeypatch.setattr(ImageReader, "read", lambda *a: seen.append(a[1].name) or read(*a))
    picture(66, 66, 7).save(album / "a.png")  # it was embedded, and is another one by now
    build_index(album, tmp_path / "i", seeing, image_field="image", **HOW)
    assert len(seen) == 3 + 6 - 2
    with Index.open(tmp_path / "i", seeing) as index:
        found = index.search("a bicycle", 9, mode="dense")
    alike(found, scores_of(seeing, items_of(album), "a bicycle"))


def test_images_that_cannot_be_read_are_set_aside(seeing, album, tmp_path):
    build_index(album, tmp_path / "i", seeing, image_field="image", **HOW)
    before = (album / "a.png").read_bytes()
    (album / "a.png").write_bytes(before[:900])
    (album / "trip/d.webp").write_bytes(b"no image")
    lines = (album / "trip/records.jsonl").read_text()
    (album / "trip/records.jsonl").write_text(lines + '{"id": 4, "image": "../a.png"}\n')
    for source, place in ((album, "trip/d.webp:1"), (album / "a.png", "a.png:1")):
        with pytest.raises(InputError, match=rf"the image of {place} .*'. cannot be read as an"):
            build_index(source, tmp_path / "i", seeing, **HOW)
    aside = tmp_path / "bad.jsonl"
    done = build_index(album, tmp_path / "i", seeing, rejects=aside, image_field="image", **HOW)
    assert (done.added, done.deleted, done.set_aside, done.gone) == (0, 0, 4, 0)
    rejects = [json.loads(line) for line in aside.read_text().splitlines()]
    assert [(one["file"], one["line"]) for one in rejects] == [
        ("a.png", 1),
        ("trip/d.webp", 1),
        ("trip/records.jsonl", 3),
        ("trip/records.jsonl", 4),
    ]
    assert "only paths inside its folder are read" in rejects[3]["error"]
    (album / "a.png").write_bytes(before)
    with Index.open(tmp_path / "i", seeing) as index:  # what it held of them stays
        found = {hit.id: hit.score for hit in index.search("a bicycle", 9, mode="dense")}
    assert len(found) == 8
    assert found["a.png"] == pytest.approx(
        scores_of(seeing, items_of(album) | dict.fromkeys((3, "trip/d.webp"), "x"), "a bicycle")[
            "a.png"
        ],
        abs=2e-5,
    )


def test_an_index_of_an_earlier_version_is_searched_and_takes_images(seeing, album, tmp_path):
    texts = written(tmp_path / "t.jsonl", [{"id": 2, "text": "the bicycle is blue"}])
    build_index(texts, tmp_path / "i", seeing, **HOW)
    with sqlite3.connect(tmp_path / "i/gen-000001/catalogue.sqlite") as old:
        old.execute("DROP TABLE images")
    old.close()
    (tmp_path / "i/gen-000001/files.json").unlink()
    with Index.open(tmp_path / "i", seeing) as index:
        assert [hit.id for hit in index.search("bicycle")] == [2]
    done = build_index(album, tmp_path / "i", seeing, **HOW)
    assert (done.added, done.moved) == (6, 1)  # a record's text was there
    with Index.open(tmp_path / "i", seeing) as index:
        assert "a.png" in {hit.image for hit in index.search("a bicycle", 9)}


def test_a_model_that_reads_images_otherwise_by_now_is_refused(vision_folder, album, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(vision_folder("qwen3_vl"), folder)
    build_index(album, tmp_path / "i", embedlm.load(folder, "qwen3-vl-embedding"), **HOW)
    with Index.open(tmp_path / "i") as index:
        assert index.search("a bicycle", 9)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["image_mean"] = [0.1, 0.1, 0.1]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with Index.open(tmp_path / "i") as index:
        assert index.search("a bicycle", mode="bm25")
        with pytest.raises(InputError, match=r"as preprocessor_config.json of .* it says"):
            index.search("a bicycle")
    with pytest.raises(InputError, match="it says something else by now; make a new index"):
        build_index(album, tmp_path / "i", **HOW)


# -- other models ---------------------------------------------------------------------------------


def test_clip(album, tmp_path):
    clip = embedlm.load(build_clip(tmp_path / "model"), device="cpu")
    build_index(album, tmp_path / "i", clip, **HOW)
    items = {k: v for k, v in items_of(album).items() if k not in (1, 2, 3)}
    items["trip/records.jsonl:1"] = items["trip/records.jsonl:2"] = None
    with Index.open(tmp_path / "i", clip) as index:
        for query in ("a red bicycle", {"image": album / "a.png"}):
            found = index.search(query, 9, mode="dense")
            wanted = {k: v for k, v in items.items() if v is not None}
            alike([hit for hit in found if hit.id in wanted], scores_of(clip, wanted, query))
        with pytest.raises(InputError, match="a tower for each"):
            index.search({"image": album / "a.png", "text": "a dog"})


def test_pages_are_found_by_late_interaction_where_no_mode_is_named(album, tmp_path):
    model = embedlm.load(build_colqwen2(tmp_path / "model"), device="cpu")
    pages = album / "trip"
    (pages / "records.jsonl").unlink()
    build_index(pages, tmp_path / "i", model, **HOW)
    items = {name: {"image": pages / name} for name in ("b.JPG", "c.gif", "d.webp")}
    with Index.open(tmp_path / "i", model) as index:
        found = index.search("how did sales grow?", 9)
        expected = scores_of(model, items, "how did sales grow?")
        assert {hit.id: hit.score for hit in found} == pytest.approx(expected, rel=1e-4)
        with pytest.raises(InputError, match=r"has no {image}"):
            index.search({"image": pages / "b.JPG"})
    with pytest.raises(InputError, match="reads an image, and none was given"):
        build_index(album / "notes.md", tmp_path / "n", model, **HOW)


# -- what is refused ------------------------------------------------------------------------------


def test_a_model_of_texts_refuses_images(tiny_llama, album, tmp_path, run):
    model = embedlm.load(tiny_llama, "plain-mean", device="cpu")
    with pytest.raises(UnsupportedError, match="reads texts alone"):
        build_index(album, tmp_path / "i", model, image_field="image", **HOW)
    with pytest.raises(InputError, match=r"a.png' is an image, and the model reads texts alone"):
        build_index(album / "a.png", tmp_path / "i", model, **HOW)
    (tmp_path / "only").mkdir()
    picture(9, 9).save(tmp_path / "only/a.png")
    with pytest.raises(InputError, match=r"its images \(1\) are indexed by a model that reads"):
        build_index(tmp_path / "only", tmp_path / "i", model, **HOW)
    assert not (tmp_path / "i").exists()
    assert build_index(album, tmp_path / "i", model, **HOW).documents == 3  # as without images
    with Index.open(tmp_path / "i", model) as index, pytest.raises(UnsupportedError, match="texts"):
        index.search({"image": album / "a.png"})


def test_what_does_not_go_with_images_is_refused(seeing, album, tmp_path):
    with pytest.raises(InputError, match=r"no record of .* has the field 'picture'"):
        build_index(album, tmp_path / "i", seeing, image_field="picture", **HOW)
    with pytest.raises(InputError, match=r"image_field \(--image-field\) names a field of records"):
        build_index(album / "notes.md", tmp_path / "i", seeing, image_field="image", **HOW)
    with pytest.raises(RecordError, match=r"records.jsonl:1: field 'year' is int, not the path"):
        build_index(album / "trip", tmp_path / "i", seeing, image_field="year", **HOW)
    mean = seeing.with_recipe(
        seeing.recipe.override({"pooling.kind": "mean", "pooling.over": "text"})
    )
    late = Chunking("tokens", 8, late=True)
    with pytest.raises(UnsupportedError, match=r"late chunking .* is an image"):
        build_index(album / "a.png", tmp_path / "i", mean, chunking=late, **HOW)
    build_index(album, tmp_path / "i", seeing, chunking=Chunking("tokens", 3), **HOW)

    class Reranks:
        def rank(self, query, documents, top_k=None):
            raise AssertionError(documents)

    with Index.open(tmp_path / "i", seeing) as index:
        with pytest.raises(UnsupportedError, match="a re-ranker reads texts alone, and the query"):
            index.search({"image": album / "a.png"}, rerank=Reranks())
        with pytest.raises(UnsupportedError, match=r"and '.*' is an image among the best hits"):
            index.search("a bicycle", rerank=Reranks(), mode="dense")
        for mode in ("bm25", "hybrid"):
            with pytest.raises(UnsupportedError, match="an image alone has none"):
                index.search({"image": album / "a.png", "text": " "}, mode=mode)
        for query in (5, ["a"], b"a", {"text": ""}, {"text": 5}, {}):
            with pytest.raises(InputError):
                index.search(query)

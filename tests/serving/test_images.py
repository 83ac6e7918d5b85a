"""Images in requests: vectors are the library's; what is no image, or too large, is refused."""

import io
import json
import struct
import sys
import zlib
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import embedlm
from embedlm.search import Index, build_index
from embedlm.serving import Mounted
from embedlm.serving.encoding import Served
from embedlm.vision import picture_of
from tests.serving.conftest import process, running
from tests.vision_models import build, build_clip, build_colqwen2, picture


def file_of(image, form="PNG", **options):
    """Return the bytes of an image's file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def uri(content, kind="png"):
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


def png_of(width, height):
    """Return a PNG of a few bytes that unpacks to so many pixels."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 + (width + 7) // 8) * height, 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


IMAGES = [picture(90, 60), picture(60, 90, 1), picture(64, 64, 2)]
FILES = [file_of(image) for image in IMAGES]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    seeing = embedlm.load(build("qwen3_vl", folder / "vl"), "qwen3-vl-embedding", device="cpu")
    clip = embedlm.load(build_clip(folder / "clip"), device="cpu")
    pages = embedlm.load(build_colqwen2(folder / "pages"), device="cpu")
    return {"vl": seeing, "clip": clip, "pages": pages}


@pytest.fixture(scope="module")
def indexes(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("album")
    (folder / "in").mkdir()
    for number, content in enumerate(FILES):
        (folder / f"in/{number}.png").write_bytes(content)
    for name in ("vl", "pages"):
        build_index(folder / "in", folder / name, models[name], store="exact")
    (folder / "in/notes.md").write_text("A red bicycle.\n")
    build_index(folder / "in", folder / "vl", models["vl"])
    return {name: folder / name for name in ("vl", "pages")}


@pytest.fixture(scope="module")
def seen(models, indexes):
    mounted = {
        name: Mounted.open(name, path, [Served(one, model) for one, model in models.items()])
        for name, path in indexes.items()
    }
    with running(models, mounted) as place:
        yield place


# -- vectors --------------------------------------------------------------------------------------


def test_the_own_route_gives_what_encode_gives(seen, models):
    texts = ["a dog", {"image": uri(FILES[0])}, {"image": uri(FILES[1]), "text": "a cat"}]
    items = ["a dog", {"image": FILES[0]}, {"image": FILES[1], "text": "a cat"}]
    how = {"role": "query", "instruction": "Find it.", "dim": 16}
    answer = seen.post("/v1/encode", {"texts": texts, "model": "vl", **how}).json()
    expected = models["vl"].encode(items, **how)
    np.testing.assert_allclose(answer["outputs"]["dense"], expected, atol=2e-6)
    words = models["vl"].render(["a dog"], role="query", instruction="Find it.")
    ids = len(words.ids[0])
    reader = models["vl"].executor.image_reader
    for item, text in ((items[1], ""), (items[2], "a cat")):
        tokens = reader.read(picture_of(item["image"], "it"), models["vl"].recipe.image).tokens
        around = models["vl"].render([text or "a"], role="query", instruction="Find it.")
        ids += len(around.ids[0]) - (0 if text else 1) + tokens + 2  # and the two marks around it
    assert answer["tokens"] == ids
    one = seen.post("/v1/encode", {"texts": texts[1], "model": "vl"}).json()
    np.testing.assert_allclose(one["outputs"]["dense"], [models["vl"].encode(items[1])], atol=2e-6)


def test_heads_of_pages(seen, models):
    body = {"texts": [{"image": uri(FILES[0])}], "model": "pages", "role": "document"}
    found = seen.post("/v1/encode", body).json()["outputs"]["multi_vector"][0]
    expected = models["pages"].encode_document({"image": FILES[0]}).multi_vector[0]
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("name", ["vl", "clip"])
def test_jinas_inputs(seen, models, name):
    given = [{"text": "a dog"}, {"image": b64encode(FILES[0]).decode()}, {"image": uri(FILES[2])}]
    answer = seen.post("/v1/embeddings", {"input": given, "model": name}).json()
    expected = models[name].encode(["a dog", IMAGES[0], IMAGES[2]])
    found = [one["embedding"] for one in answer["data"]]
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert answer["usage"]["prompt_tokens"] > 10


def test_coheres_images_and_inputs(seen, models):
    model = models["vl"]
    kinds = ["float", "int8"] if model.ranges.by_form else ["float", "ubinary"]
    body = {"input_type": "image", "images": [uri(one) for one in FILES], "model": "vl"}
    answer = seen.post("/v2/embed", {**body, "embedding_types": kinds}).json()
    expected = model.encode(IMAGES)
    np.testing.assert_allclose(answer["embeddings"]["float"], expected, atol=2e-6)
    assert len(answer["embeddings"]["ubinary"]) == 3
    assert (answer["texts"], answer["meta"]["billed_units"]["images"]) == ([], 3)
    image = {"type": "image_url", "image_url": {"url": uri(FILES[1])}}
    inputs = [
        {"content": [{"type": "text", "text": "a dog"}]},
        {"content": [image]},
        {"content": [{"type": "text", "text": "a cat"}, image]},
    ]
    body = {"input_type": "search_query", "inputs": inputs, "model": "vl"}
    answer = seen.post("/v2/embed", body).json()
    items = ["a dog", IMAGES[1], {"image": IMAGES[1], "text": "a cat"}]
    np.testing.assert_allclose(answer["embeddings"]["float"], model.encode_query(items), atol=2e-6)
    assert answer["texts"] == ["a dog", "", "a cat"]


@pytest.mark.parametrize(
    ("form", "kind"), [("JPEG", "jpeg"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp")]
)
def test_forms_of_files(seen, models, form, kind):
    content = file_of(IMAGES[0], form)
    answer = seen.post("/v1/encode", {"texts": {"image": uri(content, kind)}, "model": "vl"})
    expected = models["vl"].encode({"image": content})
    np.testing.assert_allclose(answer.json()["outputs"]["dense"], [expected], atol=2e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked under Linux")
@pytest.mark.parametrize("workers", [0, 2])
def test_requests_that_run_together_give_what_each_gives_alone(models, workers):
    folder = models["vl"].name
    options = ("-r", "qwen3-vl-embedding", "--device", "cpu", "--workers", workers)
    expected = models["vl"].encode([*IMAGES, "a dog runs over the mountain"], role="document")
    texts = [*({"image": uri(one)} for one in FILES), "a dog runs over the mountain"]

    def ask(number):
        some = [(number + place) % 4 for place in range(1 + number % 3)]
        body = {"texts": [texts[one] for one in some], "role": "document"}
        found = place.post("/v1/encode", body).json()["outputs"]["dense"]
        np.testing.assert_allclose(found, expected[some], atol=2e-6)

    with process(folder, *options) as (_, place, _), ThreadPoolExecutor(12) as pool:
        assert len(list(pool.map(ask, range(60)))) == 60


def test_the_count_of_an_images_tokens_is_that_of_reading_it(models):
    model = models["vl"]
    reader, options = model.executor.image_reader, model.recipe.image
    for width, height in [(9, 9), (33, 400), (640, 31), (100, 101), (500, 500), (1, 150)]:
        image = picture_of(picture(width, height), "it")
        assert reader.count(width, height, options) == reader.read(image, options).tokens


# -- search ---------------------------------------------------------------------------------------


def test_an_index_is_asked_by_an_image(seen, models, indexes):
    with Index.open(indexes["vl"], models["vl"]) as index:
        for asked, query in [
            ({"image": uri(FILES[1])}, {"image": FILES[1]}),
            ({"image": uri(FILES[1]), "query": "red"}, {"image": FILES[1], "text": "red"}),
            ({"query": "a red bicycle"}, "a red bicycle"),
        ]:
            answer = seen.post("/v1/search", {**asked, "index": "vl"})
            hits = answer.json()["hits"]
            expected = index.search(query)
            assert [hit["id"] for hit in hits] == [hit.id for hit in expected]
            scores = [hit.score for hit in expected]
            np.testing.assert_allclose([hit["score"] for hit in hits], scores, atol=2e-5)
            assert [hit.get("image") for hit in hits] == [hit.image for hit in expected]
    found = seen.post("/v1/search", {"query": "a chart", "index": "pages"}).json()["hits"]
    with Index.open(indexes["pages"], models["pages"]) as index:
        expected = index.search("a chart", mode="late-interaction")
    assert [hit["id"] for hit in found] == [hit.id for hit in expected]
    store = seen.post("/v1/vector_stores/pages/search", {"query": "a chart"}).json()["data"]
    assert [hit["attributes"]["image"] for hit in store] == [hit.id for hit in expected]


# -- what is refused ------------------------------------------------------------------------------


def sent(content, kind="png"):
    return {"texts": ["a", {"image": uri(content, kind)}], "model": "vl"}


@pytest.mark.parametrize(
    ("image", "status", "told"),
    [
        ("https://example.com/a.png", 400, "the image of input 1 is an address, and nothing is"),
        ("file:///etc/hostname", 400, "is an address, and nothing is downloaded"),
        ("/etc/hostname", 400, "is no base64"),
        ("../a.png", 400, "is no base64"),
        ("abcd", 400, "cannot be read as an image: it has no form that Pillow knows"),
        ("", 400, "cannot be read as an image"),
        ("data:image/png,abc", 400, "is a data: URI without base64"),
        ("data:image/png;base64,%41", 400, "is no base64"),
        (uri(FILES[0][:200]), 400, "the image of input 1 cannot be read as an image"),
        (uri(file_of(IMAGES[0], "TIFF")), 400, "it has no form that Pillow knows"),
        (uri(file_of(IMAGES[0], "PPM")), 400, "it has no form that Pillow knows"),
        (uri(file_of(Image.new("I;16", (9, 9)))), 400, "has the mode I;16"),
        (uri(png_of(300, 1)), 400, "an image cannot be taken by the model"),
        (uri(png_of(9000, 9000)), 413, "have 81,000,000 pixels, and 33,554,432 are allowed"),
        (uri(png_of(20_000, 20_000)), 400, "could be decompression bomb"),
        (5, 400, "the request cannot be read"),
    ],
)
def test_what_is_no_image_is_refused(seen, image, status, told):
    answer = seen.post("/v1/encode", {"texts": ["a", {"image": image}], "model": "vl"})
    assert (answer.status, told in answer.json()["error"]["message"]) == (status, True), answer.body


def test_limits(models):
    with running({"vl": models["vl"]}, image_pixels=90 * 60 + 60 * 90, body_bytes=100_000) as place:
        images = [{"image": uri(one)} for one in FILES]
        assert place.post("/v1/encode", {"texts": images[:2]}).status == 200
        answer = place.post("/v1/encode", {"texts": images})
        assert answer.status == 413
        assert "14,896 pixels, and 10,800 are allowed" in answer.json()["error"]["message"]
        noise = Image.effect_noise((300, 300), 90)
        assert place.post("/v1/encode", {"texts": {"image": uri(file_of(noise))}}).status == 413
        assert place.post("/v1/encode", {"texts": ["a"]}).status == 200


def test_texts_beside_images_are_shortened_only_where_that_is_allowed(seen, models):
    item = {"image": uri(FILES[0]), "text": "river mountain " * 60}
    body = {"texts": ["a", item], "model": "vl", "max_length": 60}
    answer = seen.post("/v1/encode", body)
    assert answer.status == 413
    assert "input 1 is too long for the model 'vl'" in answer.json()["error"]["message"]
    answer = seen.post("/v1/encode", {**body, "truncate": True})
    assert answer.json()["truncated"] == [1]
    items = ["a", {"image": FILES[0], "text": item["text"]}]
    expected = models["vl"].encode(items, max_length=60)
    np.testing.assert_allclose(answer.json()["outputs"]["dense"], expected, atol=2e-6)
    answer = seen.post("/v1/encode", {**body, "max_length": 20, "truncate": True})
    assert (answer.status, "give a larger max_length" in answer.body.decode()) == (400, True)
    cohere = {"input_type": "search_query", "model": "vl", "max_tokens": 60}
    parts = [{"type": "text", "text": item["text"]}]
    parts.append({"type": "image_url", "image_url": {"url": item["image"]}})
    answer = seen.post("/v2/embed", {**cohere, "inputs": [{"content": parts}]})
    assert "shortened" in answer.json()["meta"]["warnings"][0]
    refused = seen.post("/v2/embed", {**cohere, "inputs": [{"content": parts}], "truncate": "NONE"})
    assert refused.status == 413


def test_what_models_do_not_read_is_refused(seen, place):
    image = {"image": uri(FILES[0])}
    answer = place.post("/v1/encode", {"texts": [image]})
    assert (answer.status, "reads texts alone" in answer.body.decode()) == (400, True)
    for body, told in [
        ({"texts": [{**image, "text": "a"}], "model": "clip"}, "a tower for each"),
        ({"texts": [image], "model": "clip", "instruction": "a"}, "a tower for each"),
        ({"texts": [image], "model": "pages", "role": "query"}, "has no {image}"),
        ({"texts": ["a"], "model": "pages", "role": "document"}, "reads an image, and none"),
        ({"texts": [{}], "model": "vl"}, "input 0 is empty"),
        ({"texts": [{"text": "a", "audio": "b"}], "model": "vl"}, "cannot be read"),
        ({"texts": [[5, 6], image], "model": "vl"}, "cannot be read"),
    ]:
        answer = seen.post("/v1/encode", body)
        assert (answer.status, told in answer.body.decode()) == (400, True), answer.body
    cohere = {"input_type": "image", "model": "vl"}
    part = {"type": "image_url", "image_url": {"url": uri(FILES[0])}}
    for body, told in [
        ({"images": [uri(FILES[0])], "texts": ["a"]}, "give texts, images or inputs, one of them"),
        ({"images": []}, "there is no text in the request"),
        ({"inputs": [{"content": [part, part]}]}, "input 0 has two images"),
        ({"inputs": [{"content": []}]}, "cannot be read"),
    ]:
        answer = seen.post("/v2/embed", {**cohere, **body})
        assert (answer.status, told in answer.json()["message"]) == (400, True), answer.body
    for body, told in [
        ({"image": uri(FILES[0]), "mode": "bm25"}, "an image alone has none"),
        ({"image": uri(FILES[0]), "mode": "hybrid"}, "an image alone has none"),
        ({"image": "a.png"}, "the image of the query is no base64"),
        ({}, "give a query, an image, or both"),
        ({"query": " "}, "the query is empty"),
    ]:
        answer = seen.post("/v1/search", {"index": "vl", **body})
        assert (answer.status, told in answer.body.decode()) == (400, True), answer.body
    answer = place.post("/v1/search", {"image": uri(FILES[0])})
    assert (answer.status, "reads texts alone" in answer.body.decode()) == (400, True)


def test_a_damaged_image_fails_its_own_request_only(seen, models):
    good = {"texts": [{"image": uri(FILES[0])}], "model": "vl"}
    bad = {"texts": [{"image": uri(FILES[1][:-400])}], "model": "vl"}
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda body: seen.post("/v1/encode", body), [good, bad] * 6))
    assert [answer.status for answer in answers] == [200, 400] * 6
    expected = models["vl"].encode(IMAGES[:1])
    for answer in answers[::2]:
        found = json.loads(answer.body)["outputs"]["dense"]
        np.testing.assert_allclose(found, expected, atol=2e-6)

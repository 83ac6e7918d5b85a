"""What may be given as an image, and what is refused in words that help."""

import io
import json
import pickle
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import embedlm
from embedlm.errors import InputError, MissingExtraError, ModelError, UnsupportedError
from tests.vision_models import picture


def png(image, **options):
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "page.png"
    path.write_bytes(png(picture(90, 60)))
    return path


# -- what is taken --------------------------------------------------------------------------------


def test_a_path_bytes_and_an_image_of_pil_are_one(seeing, file):
    forms = [file, str(file), file.read_bytes(), bytearray(file.read_bytes()), Image.open(file)]
    vectors = seeing.encode([{"image": form} for form in forms])
    np.testing.assert_array_equal(vectors, vectors[[0] * len(forms)])
    np.testing.assert_array_equal(seeing.encode([picture(90, 60)]), vectors[:1])


def test_one_item_gives_one_vector(seeing):
    image = picture(90, 60)
    for one in (image, {"image": image}, {"text": "a dog", "image": image}):
        assert seeing.encode(one).shape == (32,)
    assert seeing.encode([image]).shape == (1, 32)


def test_an_image_of_none_is_none(seeing):
    found = seeing.encode([{"text": "a dog", "image": None}, {"text": "a dog"}])
    np.testing.assert_array_equal(found[0], found[1])


def test_text_and_image_both_count(seeing):
    image, other = picture(90, 60), picture(90, 60, seed=1)
    vectors = seeing.encode([{"image": image}, {"image": image, "text": "a"}, {"image": other}])
    assert (vectors @ vectors.T)[np.triu_indices(3, 1)].max() < 0.9999


def test_every_way_to_encode_takes_images(seeing):
    item = {"text": "a dog", "image": picture(90, 60)}
    whole = seeing.encode([item])
    for method in (seeing.encode_query, seeing.encode_document):
        np.testing.assert_allclose(method([item]), whole, atol=1e-6)
    np.testing.assert_allclose(list(seeing.stream(iter([item]))), whole, atol=1e-6)
    scores = seeing.similarity(whole, seeing.encode(["a dog"]))
    assert scores.shape == (1, 1)


def test_heads_read_the_tokens_of_an_image(seeing):
    found = seeing.encode([{"image": picture(64, 64)}], heads=["dense", "multi_vector"])
    over_image = seeing.with_recipe(seeing.recipe.override({"pooling.over": ["image"]}))
    kept = over_image.encode(
        [{"image": picture(64, 64)}], heads={"multi_vector": {"over": ["image"]}}
    )
    assert len(kept.multi_vector[0]) == 4
    assert len(found.multi_vector[0]) > 4


def test_a_transparent_image_lies_on_white(seeing):
    clear = Image.new("RGBA", (64, 64), (10, 200, 30, 0))
    white = Image.new("RGB", (64, 64), "white")
    np.testing.assert_array_equal(*seeing.encode([clear, white]))


def test_a_photograph_is_turned_upright(seeing):
    upright = picture(60, 90)
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter to the right
    np.testing.assert_array_equal(*seeing.encode([{"image": png(turned, exif=exif)}, upright]))


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "CMYK", "YCbCr"])
def test_other_modes_of_shades_are_read(seeing, mode):
    assert np.isfinite(seeing.encode(picture(64, 64).convert(mode))).all()


def test_images_keep_their_order_over_several_chunks(seeing, monkeypatch):
    monkeypatch.setattr("embedlm.encode.images.IMAGES", 2)
    images = [picture(64 + 8 * number, 70, number) for number in range(5)]
    items = [*images[:3], "light", *images[3:], images[0]]
    alone = np.stack([seeing.encode(item) for item in items])
    np.testing.assert_allclose(seeing.encode(items), alone, atol=2e-6)


def test_a_text_that_spells_the_image_token_is_text(seeing):
    image = picture(64, 64)
    spelled = "what is <|image_pad|>?"
    assert np.isfinite(seeing.encode([{"image": image, "text": spelled}, spelled])).all()
    read = seeing.recipe.override({"prompt.special_tokens_in_text": "tokens"})
    with pytest.raises(InputError, match="takes 4 tokens, and 5 of them are in its prompt"):
        seeing.with_recipe(read).encode({"image": image, "text": spelled})


def test_a_saved_model_reads_images(seeing, tmp_path):
    items = [{"image": picture(90, 60), "text": "a dog"}, "a dog"]
    seeing.save_pretrained(tmp_path / "saved")
    again = embedlm.load(tmp_path / "saved", device="cpu")
    assert again.recipe == seeing.recipe
    np.testing.assert_allclose(again.encode(items), seeing.encode(items), atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_processor_type": "Qwen2VLImageProcessorFast"},
        {"size": None, "min_pixels": 4096, "max_pixels": 12288},
    ],
)
def test_settings_of_earlier_versions_are_read(seeing, vision_folder, tmp_path, changes):
    folder = shutil.copytree(vision_folder("qwen3_vl"), tmp_path / "model")
    file = folder / "preprocessor_config.json"
    settings = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: one for key, one in settings.items() if one is not None}))
    recipe = seeing.recipe.override({"image": {}})
    older = embedlm.load(folder, recipe, device="cpu")
    image = picture(300, 200)
    np.testing.assert_array_equal(older.encode(image), seeing.with_recipe(recipe).encode(image))


def test_a_copy_and_another_thread_read_images(seeing):
    items = [{"image": picture(90, 60 + 8 * number)} for number in range(4)]
    expected = seeing.encode(items)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(seeing.encode, [items] * 4):
            np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(seeing)).encode(items), expected)


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ("none.png", r"item 1 \('none.png'\) is not there; give the path of an image file"),
        ("https://a.b/c.png", "is an address .*, and nothing is downloaded"),
        ("data:image/png;base64,AAAA", "is an address"),
        ("", "is str"),
        ("a\0b", "the path 'a.x00b' cannot be used"),
        (b"", "the image of item 1 cannot be read as an image"),
        (b"no image at all", "the image of item 1 cannot be read as an image"),
        (5, "the image of item 1 is int .5.; give the path of a file, its bytes, or a PIL image"),
        ([picture(9, 9)], "the image of item 1 is list"),
        (np.zeros((4, 4, 3)), "the image of item 1 is ndarray"),
        (Image.new("I", (40, 40)), "item 1 has the mode I, .*; convert it to 8 bits first"),
        (Image.new("I;16", (40, 40)), "item 1 has the mode I;16"),
        (picture(4000, 10), "item 1 cannot be taken by the model: absolute aspect ratio"),
        (png(picture(90, 90))[:900], "the image of item 1 cannot be read as an image"),
    ],
)
def test_what_is_no_image_is_named(seeing, image, told):
    with pytest.raises(InputError, match=told):
        seeing.encode(["a dog", {"text": "a dog", "image": image}])


def test_a_folder_and_a_text_file_are_no_images(seeing, tmp_path):
    with pytest.raises(InputError, match="is not there"):
        seeing.encode({"image": tmp_path})
    (tmp_path / "page.png").write_text("no image")
    with pytest.raises(InputError, match=r"page.png'\) cannot be read as an image"):
        seeing.encode({"image": tmp_path / "page.png"})


def test_an_image_lost_after_the_check_is_no_empty_text(seeing, file, monkeypatch):
    from embedlm.vision import picture as module

    opened = module._opened

    def lost(source):
        with opened(source):
            file.unlink()
        return opened(source)

    monkeypatch.setattr(module, "_opened", lost)
    with pytest.raises(InputError, match="cannot be read as an image"):
        seeing.encode({"image": file})


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_sound_and_film_are_refused(seeing, kind):
    with pytest.raises(InputError, match=f"item 0 has {kind}, which no model here reads"):
        seeing.encode({"text": "a", kind: "a.mp4"})


def test_a_model_of_texts_refuses_images(tiny_llama):
    model = embedlm.load(tiny_llama, "plain-last", device="cpu")
    with pytest.raises(UnsupportedError, match=r"reads texts alone: it is 'llama'.*qwen2_vl"):
        model.encode(["a dog", {"image": picture(64, 64)}])


def test_a_static_recipe_refuses_images(vision_folder):
    model = embedlm.load(vision_folder("qwen3_vl"), "static-mean", device="cpu")
    with pytest.raises(UnsupportedError, match="by this recipe no layer is run"):
        model.encode(picture(64, 64))


def test_a_recipe_without_an_image_slot_refuses_images(seeing):
    image = {"image": picture(64, 64)}
    with pytest.raises(InputError, match=r"template without a role has no {image}"):
        seeing.with_recipe("plain-last").encode(image)
    with pytest.raises(InputError, match="is written before texts alone"):
        seeing.encode(image, prompt="Query: ")
    own = {"pooling.denoise": True}
    with pytest.raises(UnsupportedError, match="says nothing of an image"):
        seeing.with_recipe(seeing.recipe.override(own)).encode(image)


def test_a_template_may_take_images_alone(seeing):
    templates = {"document": "Page: {image}", "query": "{text}"}
    model = seeing.with_recipe({"prompt": templates, "pooling": {"kind": "last"}})
    image = picture(64, 64)
    assert model.encode_document(image).shape == model.encode_query("a dog").shape
    with pytest.raises(InputError, match="for role 'document' reads an image, and none was given"):
        model.encode_document("a dog")
    with pytest.raises(InputError, match=r"for role 'document' has no {text}"):
        model.encode_document({"image": image, "text": "a dog"})


def test_an_image_that_leaves_no_room_is_refused(seeing):
    with pytest.raises(InputError, match="the prompt alone takes"):
        seeing.encode({"image": picture(300, 300)}, max_length=8)
    cut = seeing.with_recipe(seeing.recipe.override({"prompt.truncate": "end"}))
    with pytest.raises(InputError, match=r"takes 9 tokens, and . of them are in its prompt of 40"):
        cut.encode({"image": picture(100, 100)}, instruction="long " * 5, max_length=40)


@pytest.mark.parametrize("name", ["min_pixels", "max_pixels"])
def test_sizes_that_contradict_the_checkpoint_s_are_refused(seeing, name):
    asked = seeing.recipe.override({"image": {name: {"min_pixels": 10**9, "max_pixels": 1}[name]}})
    model = seeing.with_recipe(asked)
    assert model.encode("a dog").shape == (32,)
    with pytest.raises(UnsupportedError, match=r"give both image\.min_pixels"):
        model.encode(picture(64, 64))


@pytest.mark.parametrize("method", ["render", "fit"])
def test_what_takes_texts_alone_refuses_images(seeing, method):
    with pytest.raises(InputError, match="item 0 is an image, or has one, and this takes texts"):
        getattr(seeing, method)([{"text": "a", "image": picture(64, 64)}])


def test_a_checkpoint_without_image_settings_is_named(vision_folder, tmp_path):
    folder = shutil.copytree(vision_folder("qwen3_vl"), tmp_path / "model")
    (folder / "preprocessor_config.json").unlink()
    model = embedlm.load(folder, "qwen3-vl-embedding", device="cpu")
    assert model.encode("a dog").shape == (32,)
    with pytest.raises(ModelError, match=r"has no preprocessor_config.json"):
        model.encode(picture(64, 64))


def test_without_pillow_the_extra_is_named(seeing, file, monkeypatch):
    for name in [name for name in sys.modules if name == "PIL" or name.startswith("PIL.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r'pip install "embedlm\[image\]"'):
        seeing.encode({"image": str(file)})
    assert seeing.encode("a dog").shape == (32,)

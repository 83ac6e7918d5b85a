"""The model card of a saved model, and saving to the hub."""

import huggingface_hub
import numpy as np
import pytest
import yaml

import embedlm
from embedlm.errors import InputError, ModelError
from tests.hub_server import hub

TEXTS = ["plants make food", "light"]


@pytest.fixture
def model(tiny_llama):
    return embedlm.load(tiny_llama, recipe="sgpt", device="cpu")


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_holds_recipe_licence_and_scores(model, tmp_path):
    model.save_pretrained(
        tmp_path / "mine",
        license="apache-2.0",
        base_model="someone/base",
        scores={"stsb_test spearman": 0.61234},
    )
    text = (tmp_path / "mine" / "README.md").read_text()
    data = front_matter(text)
    assert data["license"] == "apache-2.0"
    assert data["base_model"] == "someone/base"
    assert data["library_name"] == "embedlm"
    (result,) = data["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 0.61234
    assert "| stsb_test spearman | 0.6123 |" in text
    assert 'embedlm.load("mine")' in text.replace("'", '"')
    recipe = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert embedlm.Recipe.load(recipe) == model.recipe
    assert huggingface_hub.ModelCard(text).data.license == "apache-2.0"


def test_what_is_not_known_is_said(model, tmp_path):
    model.save_pretrained(tmp_path / "mine")
    text = (tmp_path / "mine" / "README.md").read_text()
    assert "license" not in front_matter(text)
    assert "| licence | not stated" in text
    with pytest.raises(InputError, match="give a number"):
        model.save_pretrained(tmp_path / "mine", scores={"stsb": "good"})


def test_a_card_takes_licence_and_base_model_from_that_of_the_models_folder(tmp_path):
    from embedlm.compress import prune

    prune("builtin", tmp_path / "cut", layers=1)
    prune(tmp_path / "cut", tmp_path / "small", save_dtype="int8")
    for folder in ("cut", "small"):
        data = front_matter((tmp_path / folder / "README.md").read_text())
        assert data["license"] == "apache-2.0"
        assert data["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    embedlm.load(tmp_path / "cut").save_pretrained(tmp_path / "mine", license="mit")
    assert front_matter((tmp_path / "mine" / "README.md").read_text())["license"] == "mit"
    for broken in ("no front matter", "---\nlicense: [mit]\n---\n", "---\na: b: c\n---\n"):
        (tmp_path / "cut" / "README.md").write_text(broken)
        embedlm.load(tmp_path / "cut").save_pretrained(tmp_path / "mine")
        assert "| licence | not stated" in (tmp_path / "mine" / "README.md").read_text()


def test_a_model_goes_to_the_hub_and_comes_back(model, tmp_path, monkeypatch):
    with hub() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        url = model.push_to_hub(
            "me/mine", private=True, token="hf_good", message="first", license="mit"
        )
        assert url.endswith("me/mine")
        assert server.private == {"me/mine": True}
        assert server.messages == ["first"]
        for path, data in server.repos["me/mine"].items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(data)
    again = embedlm.load(tmp_path)
    np.testing.assert_array_equal(again.encode(TEXTS), model.encode(TEXTS))
    assert front_matter((tmp_path / "README.md").read_text())["license"] == "mit"


def test_a_hub_that_refuses_is_told(model, monkeypatch):
    with hub() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        with pytest.raises(ModelError, match=r"cannot save to 'me/mine'.*token"):
            model.push_to_hub("me/mine", token="hf_bad")
        with pytest.raises(InputError, match="owner/name"):
            model.push_to_hub("me/mine/more", token="hf_good")
        with pytest.raises(InputError, match="is no repository id"):
            model.push_to_hub("me/..", token="hf_good")  # whose folder would be one above
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="cannot save"):
        model.push_to_hub("me/mine", token="hf_good")

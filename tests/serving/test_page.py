"""The page at `/`, in a browser, against a real server."""

import json

import numpy as np
import pytest

import embedlm
from embedlm.encode.shown import shown_prompts
from embedlm.search import Index
from embedlm.serving import Keys
from tests.browser import LAPTOP, PHONE, audit, chromium, opened
from tests.serving.conftest import running

TEXTS = ["Plants make food from light.", "A committee met on Tuesday.", "The fox jumps."]
VIEWS = ["Similarity", "Nearest", "Map", "Words", "Prompt"]
KEY = "a key that none would guess"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def ready(page):
    page.get_by_role("button", name="Compare").wait_for()
    return page


def compare(page, texts):
    page.get_by_label("Texts, one a line").fill("\n".join(texts))
    page.get_by_role("button", name="Compare").click()
    page.get_by_text(f"{len(texts)} texts, ").wait_for()


def view(page, name):
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel", name=name)


def table(panel, number=0):
    """Open a table and return its rows as texts."""
    behind = panel.locator("details").nth(number)
    behind.locator("summary").click()
    behind.locator("tbody tr").first.wait_for()
    rows = behind.locator("tbody tr").all()
    return [row.locator("th, td").all_inner_texts() for row in rows]


def test_texts_are_compared_as_the_library_compares_them(browser, place, model):
    found = model.encode(TEXTS)
    scores = model.similarity(found, found, heads=["dense"])
    with opened(browser, place.url) as seen:
        page = ready(seen.page)
        compare(page, TEXTS)
        rows = table(view(page, "Similarity"))
        shown = np.array([[float(value) for value in row[2:]] for row in rows])
        np.testing.assert_allclose(shown, scores, atol=6e-4)
        assert [row[1] for row in rows] == TEXTS
        page.get_by_label("Text", exact=True).select_option("1")
        listed = view(page, "Nearest").locator("tbody tr button").all_inner_texts()
        order = [i for i in np.argsort(-scores[1], kind="stable") if i != 1]
        assert listed == [TEXTS[i] for i in order]
        page.get_by_role("button", name=listed[0]).click()
        assert page.get_by_label("Text", exact=True).input_value() == str(order[0])
        assert len(table(view(page, "Map"))) == len(TEXTS)
        assert page.locator("svg.map circle").count() == len(TEXTS)


def test_prompts_and_terms_are_those_of_the_library(browser, place, model):
    (prompt,), *_ = shown_prompts(model.render(TEXTS), model.readout)
    sparse = model.encode(TEXTS[:1], heads="sparse").sparse
    with opened(browser, place.url) as seen:
        page = ready(seen.page)
        compare(page, TEXTS)
        rows = table(view(page, "Prompt"))
        assert [int(row[2]) for row in rows] == prompt["ids"]
        read = [bool(share) for share in prompt["shares"]["dense"]]
        assert [row[4].endswith("%") for row in rows] == read
        first = page.locator(".tokens").first
        assert first.locator(".token.read").count() == sum(read)
        terms = table(view(page, "Words"))
        ids, weights = [int(row[2]) for row in terms], [float(row[1]) for row in terms]
        np.testing.assert_allclose(weights, sparse[0, ids].toarray()[0], atol=6e-4)
        assert weights == sorted(weights, reverse=True)
        assert page.locator(".words").inner_text() == TEXTS[0]


def test_two_recipes_stand_side_by_side(browser, place, model):
    other = model.with_recipe("weighted-mean")
    vectors = other.encode(TEXTS)
    with opened(browser, place.url) as seen:
        page = ready(seen.page)
        page.get_by_label("Side by side").check()
        second = page.get_by_role("group", name="B")
        second.get_by_label("Recipe").select_option("weighted-mean")
        compare(page, TEXTS)
        panel = view(page, "Similarity")
        assert panel.locator("svg.heat").count() == 2
        shown = [[float(v) for v in row[2:]] for row in table(panel, 1)]
        np.testing.assert_allclose(shown, other.similarity(vectors, vectors), atol=6e-4)
        told = page.get_by_text("The nearest text is the same by both").inner_text()
        assert told.endswith("of 3 texts.")
        shares = [row[-1] for row in table(view(page, "Prompt"), 1)]
        assert len(set(shares)) > 1  # later tokens weigh more
        boxes = [one.bounding_box() for one in page.locator(".result").all() if one.is_visible()]
        assert boxes[0]["y"] == boxes[1]["y"]


def test_search_marks_the_matching_sentence(browser, place, index, model):
    with Index.open(index, model) as found:
        hits = found.search("Who met? A committee met.", 3)
    with opened(browser, place.url) as seen:
        page = ready(seen.page)
        page.get_by_role("tab", name="Search").click()
        assert page.get_by_label("Index").input_value() == "notes"
        page.get_by_role("searchbox").fill("Who met? A committee met.")
        page.get_by_role("searchbox").press("Enter")
        page.locator(".hit").first.wait_for()
        assert page.locator(".passage").all_inner_texts() == [hit.text for hit in hits][:3]
        marked = page.locator(".hit mark").all_inner_texts()
        assert marked == [hit.text[slice(*hit.sentence)] for hit in hits]
        assert audit(page) == []


def test_what_is_written_stays_text(browser, place):
    wicked = [
        "<script>alert(1)</script> & <b>bold</b>",
        "<img src=x onerror=alert(2)>",
        "\u202e${x} {{y}} 'a\" \U0001f33f",
    ]
    with opened(browser, place.url) as seen:
        page = ready(seen.page)
        before = page.locator("script").count()
        compare(page, wicked)
        for name in VIEWS:
            panel = view(page, name)
            for one in panel.locator("details").all():
                one.locator("summary").click()
            page.locator(
                "svg [data-tip], mark, .token"
            ).first.hover() if name != "Nearest" else None
        assert wicked[0] in view(page, "Nearest").inner_text() + view(page, "Words").inner_text()
        assert page.locator("script").count() == before
        assert page.locator("main b, main img").count() == 0


def test_the_keyboard_is_enough(browser, place):
    with opened(browser, place.url) as seen:
        page = ready(seen.page)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        for _ in range(2):  # the pages' tabs, then the texts
            page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"
        page.keyboard.press("Control+A")
        page.keyboard.type("Plants make food.")
        page.keyboard.press("Enter")
        page.keyboard.type("The fox jumps.")
        page.keyboard.press("Control+Enter")
        page.get_by_text("2 texts, ").wait_for()
        stops = []
        for _ in range(16):
            page.keyboard.press("Tab")
            stops.append(page.evaluate("document.activeElement.getAttribute('role')"))
            if stops[-1] == "tab":
                break
        assert stops[-1] == "tab"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.getAttribute('class')") == "heat"
        page.keyboard.press("ArrowRight")
        assert page.get_by_role("status").last.inner_text().startswith("1 and 1: ")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        assert page.locator("#tip").inner_text().startswith("2 and 2: ")
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert page.get_by_role("tab", name="Map").get_attribute("aria-selected") == "true"
        page.keyboard.press("End")
        assert page.locator(".token.read").count() > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_every_view_can_be_read(browser, place, size, scheme):
    long = "A word that does not break: " + "extraordinarily" * 6
    with opened(browser, place.url, size=size, scheme=scheme) as seen:
        page = ready(seen.page)
        assert audit(page) == []
        page.get_by_label("Side by side").check()
        page.get_by_role("group", name="A").get_by_label("sparse").check()
        compare(page, [*TEXTS, long])
        for name in VIEWS:
            panel = view(page, name)
            if panel.locator("details").count():
                table(panel)
            assert audit(page) == [], name
        ground = "getComputedStyle(document.body).backgroundColor"
        before = page.evaluate(ground)
        page.get_by_role("button", name="Switch between light and dark").click()
        assert page.evaluate(ground) != before
        assert audit(page) == []


def test_errors_of_the_server_are_shown_as_they_are(browser, place):
    with opened(browser, place.url, allow=["status of 4"]) as seen:
        page = ready(seen.page)
        page.get_by_label("Texts, one a line").fill("word " * 900)
        page.get_by_role("button", name="Compare").click()
        told = page.get_by_role("alert").first
        told.get_by_text("is too long for the model 'tiny'").wait_for()
        answer = place.post("/v1/compare", {"texts": ["word " * 900], "model": "tiny"})
        assert told.inner_text() == f"{answer.json()['error']['message']} (status 413)"
        page.get_by_label("Shorten texts that are too long").check()
        page.get_by_role("button", name="Compare").click()
        page.get_by_text("Shortened: text 1.").wait_for()
        assert told.inner_text() == ""
        page.get_by_label("Texts, one a line").fill("")
        page.get_by_role("button", name="Compare").click()
        page.get_by_text("texts is empty; give at least one").wait_for()


def test_a_protected_server_asks_for_the_key_and_nothing_keeps_it(browser, model, tmp_path):
    (tmp_path / "keys").write_text(f"{KEY}\n")
    with running({"tiny": model}, keys=Keys.read(tmp_path / "keys")) as place:
        with opened(browser, place.url, allow=["status of 401"]) as seen:
            page = seen.page
            page.get_by_label("API key").fill("a wrong one")
            assert audit(page) == []
            page.get_by_role("button", name="Open").click()
            page.get_by_text("this server wants an API key; give one it knows").wait_for()
            page.get_by_label("API key").fill(KEY)
            page.keyboard.press("Enter")
            compare(ready(page), TEXTS)
            kept = "JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])"
            assert page.evaluate(kept) == json.dumps([{}, {}, "", f"{place.url}/"]).replace(" ", "")
            assert KEY not in page.content()
            page.reload()
            page.get_by_label("API key").wait_for()
        for path in ("/v1/compare", "/v1/render"):
            assert place.post(path, {"texts": ["a"]}).status == 401
        assert place.get("/v1/served").status == 401
        assert place.get("/page/app.js").status == 200


def test_a_server_without_an_index_says_how_to_make_one(browser, model):
    with running({"tiny": model}) as place, opened(browser, place.url) as seen:
        ready(seen.page).get_by_role("tab", name="Search").click()
        seen.page.get_by_text("embedlm serve --index notes.index").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_routes_are_described_as_readably(browser, place, scheme):
    with opened(browser, f"{place.url}/docs", size=PHONE, scheme=scheme) as seen:
        assert audit(seen.page) == []
        fields = seen.page.get_by_role("region", name="Fields of POST /v1/compare")
        assert fields.get_by_text("One that fits the model").count() == 1
        seen.page.get_by_role("link", name="The page").click()
        ready(seen.page)


# -- its routes, without a browser ------------------------------------------------------------


def test_compare_is_the_librarys(place, model):
    body = {"texts": TEXTS, "heads": ["dense", "sparse", "multi_vector"]}
    found = place.post("/v1/compare", body).json()
    expected = model.encode(TEXTS, heads=body["heads"])
    for head, matrix in found["scores"].items():
        ours = model.similarity(expected, expected, heads=[head])
        np.testing.assert_allclose(matrix, ours, atol=1e-3)
    v_ND = expected.dense / np.linalg.norm(expected.dense, axis=1, keepdims=True)
    centred = v_ND - v_ND.mean(axis=0)
    share = np.linalg.svd(centred, compute_uv=False) ** 2  # of unit vectors kernel PCA is PCA
    np.testing.assert_allclose(found["shown"], share[:2].sum() / share.sum(), atol=1e-3)
    steps = [np.linalg.norm(np.diff(at, axis=0), axis=1) for at in (found["places"], centred)]
    np.testing.assert_allclose(*steps, atol=1e-3)  # three points lie in a plane


def test_a_recipe_is_chosen_for_each_request(place, model):
    body = {"texts": TEXTS, "recipe": "weighted-mean"}
    expected = model.with_recipe("weighted-mean").encode(TEXTS)
    found = place.post("/v1/encode", body).json()
    np.testing.assert_allclose(found["outputs"]["dense"], expected, atol=2e-6)
    (model_facts,) = place.get("/v1/served").json()["models"]
    names = [one["name"] for one in model_facts["recipes"]]
    assert names[0] == model.recipe.name
    assert {"weighted-mean", "prompteol", "splade-causal"} <= set(names)
    assert "static-mean" not in names
    unfit = place.post("/v1/encode", {**body, "recipe": "static-mean"})
    assert unfit.status == 400
    assert "backbone.kind: 'static'" in unfit.json()["error"]["message"]
    unknown = place.post("/v1/compare", {**body, "recipe": "wieghted-mean"})
    assert unknown.status == 404
    assert "Did you mean 'weighted-mean'?" in unknown.json()["error"]["message"]
    for path in ("../secret.yaml", "/etc/passwd"):
        assert place.post("/v1/render", {**body, "recipe": path}).status == 404
    rewriting = place.post("/v1/encode", {**body, "recipe": "geneol"}).json()
    assert "rewritten by a language model" in rewriting["error"]["message"]


def test_few_recipes_are_kept_at_once(place):
    from embedlm.serving.recipes import KEPT

    (facts,) = place.get("/v1/served").json()["models"]
    for one in facts["recipes"][: KEPT + 4]:
        answer = place.post("/v1/render", {"texts": ["a"], "recipe": one["name"]})
        assert answer.status == 200, answer.body
    assert len(place.service.recipes.kept) == KEPT


def test_render_is_what_the_command_prints(place, model):
    found = place.post("/v1/render", {"texts": TEXTS, "recipe": "prompteol"}).json()
    other = model.with_recipe("prompteol")
    expected = shown_prompts(other.render(TEXTS), other.readout)
    for ours, theirs in zip(found["prompts"], expected, strict=True):
        assert [{k: v for k, v in one.items() if k != "pieces"} for one in ours] == theirs
    assert "This sentence :" in "".join(found["prompts"][0][0]["pieces"])


def test_too_much_is_refused(place):
    many = place.post("/v1/compare", {"texts": ["a"] * 257})
    assert many.status == 400
    assert "at most 256" in many.json()["error"]["message"]
    vectors = {"texts": [f"{i} " + "plants make food " * 12 for i in range(200)]}
    long = place.post("/v1/compare", {**vectors, "heads": ["multi_vector"]})
    assert long.status == 413
    assert "token vectors" in long.json()["error"]["message"]


def test_the_page_may_run_nothing_but_its_own_files(place):
    answer = place.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert place.get("/page/own.py").status == 404
    assert place.get("/page/..%2f__init__.py").status == 404
    described = place.get("/openapi.json").json()["paths"]
    assert {"/v1/compare", "/v1/render", "/v1/served"} <= set(described)


def test_a_recipe_of_its_own_name_changes_nothing(place, model):
    own = embedlm.Recipe.load("plain-mean")
    assert model.recipe.name == own.name
    plain = place.post("/v1/compare", {"texts": TEXTS}).json()
    named = place.post("/v1/compare", {"texts": TEXTS, "recipe": own.name}).json()
    assert plain == named

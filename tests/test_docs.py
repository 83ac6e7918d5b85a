"""The documentation stays true: links resolve, code runs, every recipe, field and page is there."""

import re
import tomllib
import warnings
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

import embedlm
from embedlm.schema import plan, tuning
from embedlm.schema import recipe as schema
from tests.blocks import code_blocks, not_printed, run_bash, run_python, write_sample_files
from tests.command import server
from tests.readme import quick_start, without_digits

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    *sorted(DOCS.rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "benchmarks/README.md",
]
RUN_PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]
HUB, DATA = "needs a model hub", "needs data sets"
RAY, SETUP = "needs a Ray cluster", "sets up an environment"
OLLAMA, SERVER = "needs Ollama", "needs a server"
MINUTES = "takes minutes"
NOT_RUN = {
    "docs/adapt.md": [MINUTES, MINUTES, MINUTES],
    "docs/compress.md": [HUB],
    "docs/encode.md": [RAY],
    "docs/from-llm2vec.md": [HUB, HUB],
    "docs/gguf.md": [OLLAMA],
    "docs/images.md": [SETUP],
    "docs/index.md": [HUB],
    "docs/jobs.md": [DATA, HUB, DATA],
    "docs/methods/bge-m3.md": [HUB],
    "docs/from-sentence-transformers.md": [HUB],
    "docs/methods/jina.md": [HUB],
    "docs/methods/llm2vec.md": [HUB],
    "docs/methods/promptbert.md": [HUB],
    "docs/methods/splade.md": [HUB],
    "docs/quickstart.md": [SETUP, HUB],
    "docs/rerank.md": [HUB, HUB, HUB],
    "docs/mcp.md": ["waits for an agent", SERVER],
    "docs/page.md": ["starts a server"],
    "docs/scale.md": ["takes hours at this size", "needs a Qdrant cluster", RAY],
    "docs/serve.md": ["starts a server", *[SERVER] * 7, RAY],
    "docs/train.md": [DATA],
    "README.md": [SETUP, SETUP, DATA, MINUTES],
}
"""Why blocks of a page do not run, in their order."""
LINK = re.compile(r"\]\((?!https?://)([^)\s]*)\)")
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|TBD|XXX|QUICKSTART_OUTPUT)\b|lorem ipsum", re.IGNORECASE)
MACHINE_PATH = re.compile(r"(?<![\w.~/:])/(?:work|home|root|tmp|opt|Users|mnt)/|index-url")
COMMANDS = (
    "encode",
    "similarity",
    "search",
    "render",
    "demonstrations",
    "parity",
    "rerank",
    "serve",
    "mcp",
    "evaluate",
    "compare",
    "layers",
    "synthesize",
    "study",
    "report",
    "advise",
    "larmor",
    "mine",
    "refine",
    "score",
    "train",
    "adapt",
    "merge",
    "compress",
)

every_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)


def anchors(page):
    """The anchors that mkdocs and GitHub make of a page's headings."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}


@every_page
def test_relative_links_resolve(page):
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if page.is_relative_to(DOCS):
            assert target.resolve().is_relative_to(DOCS), f"{link} is outside the built site"
        if anchor:
            assert anchor in anchors(target), link


@every_page
def test_every_python_block_compiles(page):
    for block in code_blocks(page):
        if block.language == "python":
            compile(block.code, str(page), "exec")


@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_code_block_runs_as_it_stands_and_prints_what_is_shown(
    page, tmp_path, monkeypatch, capsys
):
    write_sample_files(tmp_path, page)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in code_blocks(page):
        if block.runs_here:
            with warnings.catch_warnings():
                if block.packages:
                    warnings.simplefilter("ignore")  # of these packages' own making
                run_bash(block) if block.language == "bash" else run_python(block, namespace, page)
            printed = "".join(capsys.readouterr())
            assert not_printed(block.shown, printed) == [], f"line {block.line}, of\n{printed}"


def test_the_blocks_that_do_not_run_are_these():
    blocks = [(page, block) for page in RUN_PAGES for block in code_blocks(page)]
    reasons = {}
    for page, block in blocks:
        if block.reason is not None:
            reasons.setdefault(page.relative_to(ROOT).as_posix(), []).append(block.reason)
    assert reasons == NOT_RUN


@every_page
def test_no_loose_ends_and_no_paths_of_one_machine(page):
    text = page.read_text(encoding="utf-8")
    assert not UNFINISHED.findall(text)
    assert not MACHINE_PATH.findall(text)


@pytest.mark.parametrize("name", embedlm.recipes())
def test_every_recipe_is_in_the_pages_that_list_them(name):
    methods = "".join(page.read_text() for page in (DOCS / "methods").glob("*.md"))
    for text in (methods, (DOCS / "recipes.md").read_text(), (ROOT / "README.md").read_text()):
        assert f"`{name}`" in text


@pytest.mark.parametrize(
    "page", sorted((DOCS / "methods").glob("*.md")), ids=lambda page: page.stem
)
def test_every_method_page_has_its_parts(page):
    text = page.read_text()
    for heading in ("## Template", "## Pooling", "## Use", "## Source"):
        assert heading in text
    assert any(block.language == "python" for block in code_blocks(page))


def test_the_readme_lists_the_commands_in_the_groups_of_the_help():
    from embedlm.cli._app import PANELS

    listed = re.search(r"^## Commands\n(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)[1]
    rows = re.findall(r"^\| ([a-z].*?) \| (\[.*) \|$", listed, re.MULTILINE)
    assert [re.findall(r"\[`(\w+)`\]", row) for _, row in rows] == [
        [getattr(one, "NAME", "") or one.app.name[0] for one in modules]
        for modules in PANELS.values()
    ]


PARTS = (
    schema.Recipe,
    schema.Backbone,
    schema.Prompt,
    schema.Image,
    schema.Pooling,
    schema.Transform,
    schema.Sparse,
    schema.MultiVector,
)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_field_of_a_recipe_is_documented(part: type[BaseModel]):
    text = (DOCS / "writing-recipes.md").read_text()
    for field in part.model_fields:
        assert f"`{field}`" in text, f"{part.__name__}.{field}"


PLAN_PARTS = (
    plan.Plan,
    plan.Dev,
    tuning.Stage,
    tuning.Loss,
    tuning.Data,
    tuning.Batching,
    tuning.Optimizer,
    tuning.DynamicNegatives,
    tuning.Adapter,
)


@pytest.mark.parametrize("part", PLAN_PARTS, ids=lambda part: part.__name__)
def test_every_field_of_a_plan_is_documented(part: type[BaseModel]):
    text = (DOCS / "train.md").read_text()
    for field in part.model_fields:
        assert re.search(rf"`{field}`|[`{{ ]{field}: ", text), f"{part.__name__}.{field}"


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_options_exist(command, capsys):
    from embedlm.cli._app import app

    app([command, "--help"])
    known = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    page = (DOCS / f"{command}.md").read_text()
    own = re.sub(rf"^embedlm (?!{command}\b)\S.*$", "", page, flags=re.M)  # what others take
    documented = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", own))
    assert documented <= known


@pytest.mark.parametrize("page", ["systems.md", "results.md"])
def test_the_test_files_that_a_page_names_exist(page):
    names = re.findall(r"`(?:tests/)?([\w/]*test_\w+\.py)`", (DOCS / page).read_text())
    assert names
    assert [name for name in names if not (ROOT / "tests" / name).is_file()] == []


def test_the_architecture_lists_the_layers_of_the_import_contract_in_order():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = contracts["contracts"][0]["layers"]
    expected = [re.findall(r"\w+", layer) for layer in layers if not layer.startswith("(")]
    rows = re.findall(r"^\| (`.*?) \|", (DOCS / "architecture.md").read_text(), re.MULTILINE)
    assert [re.findall(r"`(\w+)`", row) for row in rows] == expected


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]

    def leaves(node):
        if isinstance(node, str):
            yield node
        for child in node.values() if isinstance(node, dict) else node:
            if not isinstance(node, str):
                yield from leaves(child)

    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert set(leaves(nav)) == pages


def test_the_readme_quick_start_prints_what_the_readme_shows(tmp_path):
    code, shown = quick_start()
    done = server().run_code(code, folder=tmp_path)
    assert done.code == 0, done.err
    assert without_digits(done.out) == without_digits(shown)

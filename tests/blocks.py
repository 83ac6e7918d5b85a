"""The code blocks of a documentation page, and how a test runs them as they stand.

A block that cannot run here (it needs a model hub, say) has `<!-- not run: REASON -->` on the line
before it. One that needs packages that are not always there has `<!-- with: PACKAGE, PACKAGE -->`.
"""

import contextlib
import re
import shlex
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]*?) -->\n)?"
    r"(?:^<!-- with: (?P<packages>[^\n]*?) -->\n)?"
    r"^```(?P<language>python|bash)(?: title=\"[^\n]*\")?\n(?P<code>.*?)^```"
    r"(?:\n\n```(?:text)?\n(?P<shown>.*?)^```)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block of a page."""

    language: str
    code: str
    line: int
    reason: str | None
    """Why no test runs it; None where one does."""
    packages: tuple[str, ...] = ()
    """Without these it does not run."""
    shown: str = ""
    """What the page shows right below it; the block prints it, and maybe more."""

    @property
    def runs_here(self):
        """Whether this environment has what it needs."""
        return self.reason is None and all(map(find_spec, self.packages))


def code_blocks(page):
    """Return the python and bash blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        CodeBlock(
            block["language"],
            block["code"],
            text.count("\n", 0, block.start("code")),
            block["reason"],
            tuple((block["packages"] or "").replace(",", " ").split()),
            block["shown"] or "",
        )
        for block in FENCE.finditer(text)
    ]


def not_printed(shown, printed):
    """Return the lines of what a page shows that a block did not print.

    Digits behind a point depend on the machine, and a line with an ellipsis is shortened.
    """
    found = set(map(_masked, printed.splitlines()))
    return [line for line in shown.splitlines() if "..." not in line and _masked(line) not in found]


def _masked(line):
    return "".join(re.sub(r"-?\d+\.\d*", "N", line).split())


def write_sample_files(folder, page):
    """Write what a page says its reader has: a GGUF model, models and images, or a checkout.

    Every other file that a block reads is one that a block before it makes.
    """
    if page.name == "gguf.md":
        from tests.backbone.gguf_files import write_gguf
        from tests.models import build

        write_gguf(build("llama", folder / "llama"), folder / "model.gguf", "F16")
    if page.name == "images.md":
        from tests import vision_models

        vision_models.build("qwen3_vl", folder / "qwen3-vl")
        vision_models.build_colqwen2(folder / "colqwen2")
        for seed, name in enumerate(("dog.jpg", "chart.png")):
            vision_models.picture(120, 90, seed).save(folder / name)
    if page.name == "README.md":
        for name in ("docs", "examples"):
            (folder / name).symlink_to(ROOT / name)


def run_python(block, namespace, page):
    """Run a python block among the names that the page has defined so far."""
    # The empty lines make the line numbers of a traceback those of the page.
    source = "\n" * block.line + block.code
    exec(compile(source, str(page), "exec"), namespace)


def run_bash(block):
    """Run each line of a bash block through the command line, in this process.

    A line is `embedlm ...`, with `> FILE` at its end or not, or it makes a file with printf, mkdir
    or cp; anything else fails, so such a block must say that it is not run. A command ends with
    exit status 0, unless a comment behind it says `exit status N`.
    """
    from embedlm.cli import main

    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        status = re.search(r"# exit status (\d)", line)
        if not words:
            continue
        if words[0] in ("printf", "mkdir", "cp"):
            subprocess.run(["bash", "-c", line], check=True)
            continue
        assert words[0] == "embedlm", f"{line!r} is not a command of embedlm"
        with contextlib.ExitStack() as stack:
            if ">" in words:
                at = words.index(">")
                file = stack.enter_context(Path(words[at + 1]).open("w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(file))
                words = words[:at]
            code = 0
            try:
                main(words[1:])
            except SystemExit as end:
                code = end.code
        expected = int(status[1]) if status else 0
        assert (code or 0) == expected, f"{line!r} ended with exit status {code}"

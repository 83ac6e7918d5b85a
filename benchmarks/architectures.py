"""Every architecture of transformers: are our states those of its own forward?

python benchmarks/architectures.py                   checks all and writes docs/architectures.md
python benchmarks/architectures.py --only llama bert checks some anew, and keeps the other rows
"""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import re
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING, MODEL_MAPPING_NAMES

import embedlm
from benchmarks.tiny_models import VOCAB, loader_of, tiny_model
from embedlm.errors import EmbedLMError

PAGE = Path(__file__).parent.parent / "docs" / "architectures.md"
LENGTHS = (3, 40, 17, 17, 1, 26)
"""Tokens of the rows that are compared; the tiny models' windows and chunks are shorter."""
LARGEST_ERROR = 1e-5
SECONDS = 120
Verdict = Literal["equal", "refused", "not built", "DIFFERENT"]


@dataclass(frozen=True, slots=True)
class Row:
    """One architecture's row of the table."""

    name: str
    verdict: Verdict
    note: str

    def __str__(self) -> str:
        return f"| `{self.name}` | {self.verdict} | {self.note} |"


def check(name: str, folder: Path) -> Row:
    """Build a tiny model of an architecture, save it, load it and compare its states.

    Args:
        name: transformers' model type.
        folder: an empty one.
    """
    try:
        takes = first_inputs(name)
        if "input_ids" not in takes:
            return Row(name, "refused", f"reads no text: it takes {takes[0]}")
        network = built(name)
    except Exception as error:  # whatever the architecture's own code raises
        return Row(name, "not built", f"{type(error).__name__}: {_line(error)}")
    network.save_pretrained(folder)  # type: ignore[operator]
    save_tokenizer(folder)
    try:
        model = embedlm.load(folder, recipe="plain-mean", device="cpu", dtype="float32")
    except EmbedLMError as error:
        if isinstance(error.__cause__, RuntimeError):  # of shapes that do not fit each other
            return Row(name, "not built", f"sizes do not fit each other: {_line(error.__cause__)}")
        return Row(name, "refused", _line(error).replace(f"{str(folder)!r}", "the model"))
    plain = loader_of(name).from_pretrained(folder, dtype=torch.float32).eval()
    ids = rows(model.backbone.config)
    with torch.no_grad():
        worst = max(difference(model, plain, x) for x in (ids, ids[::-1]))
    if worst > LARGEST_ERROR:
        return Row(name, "DIFFERENT", f"{worst:.1e}, {how(model)}")
    return Row(name, "equal", how(model))


def first_inputs(name: str) -> list[str]:
    """Return the names of what an architecture's network takes."""
    found = MODEL_MAPPING[CONFIG_MAPPING[name]]
    network_class: Any = found[0] if isinstance(found, tuple) else found
    return [x for x in inspect.signature(network_class.forward).parameters if x != "self"]


def built(name: str) -> nn.Module:
    """Return a tiny random network of an architecture whose states differ from text to text."""
    network = tiny_model(name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():  # trained weights are neither 0 nor 1
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * noise.to(parameter.dtype)) if parameter.dim() else None
    return network


def how(model: Any) -> str:
    """Return in which way a model runs its rows."""
    backbone = model.backbone
    if backbone.packs:
        way = "packed"
    else:
        way = {
            "any": "padded",
            "equal lengths": "rows of one length together",
            "none": "row by row",
        }[backbone.company]
    direction = "causal" if backbone.causal else "bidirectional"
    return f"{direction}, {way}"


def rows(config: Any) -> list[list[int]]:
    """Return rows of token ids of unlike lengths; the first hold 1 and the padding id."""
    generator = torch.Generator().manual_seed(3)
    fields = {**config.to_dict(), **config.get_text_config().to_dict()}
    special = {
        v
        for k, v in fields.items()
        if re.fullmatch(r".*_token_(id|index)", str(k)) and isinstance(v, int)
    }
    size = min(VOCAB, config.get_text_config().vocab_size)
    usual = [index for index in range(5, size) if index not in special]
    made = [
        [usual[i] for i in torch.randint(0, len(usual), (length,), generator=generator).tolist()]
        for length in LENGTHS
    ]
    pad = fields.get("pad_token_id")
    made[1][7], made[2][4] = 1, 1
    if isinstance(pad, int) and 0 <= pad < size:
        made[1][20], made[2][9], made[2][-1] = pad, pad, pad
    return made


def difference(model: Any, plain: nn.Module, ids: list[list[int]]) -> float:
    """Return the largest relative difference of a row's states, all rows run together."""
    found = model.backbone.run(ids).split([len(row) for row in ids])
    return max(
        float((states - expected).norm() / expected.norm().clamp_min(1e-9))
        for states, expected in zip(found, (forward(plain, row) for row in ids), strict=True)
    )


def forward(network: nn.Module, row: list[int]) -> Tensor:
    """Return the states of one row by a plain forward."""
    takes = inspect.signature(network.forward).parameters
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in takes else {}
    ids_1L = torch.tensor([row])
    if "attention_mask" in takes:
        options["attention_mask"] = torch.ones_like(ids_1L)
    states_LD: Tensor = network(input_ids=ids_1L, **options).last_hidden_state[0]
    return states_LD


def save_tokenizer(folder: Path) -> None:
    """Write a tokenizer of the tiny models' vocabulary, without special tokens."""
    words = {chr(0x100 + index): index for index in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=chr(0x105)))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128)
    made.save_pretrained(folder)


def _line(error: BaseException) -> str:
    told = re.sub(r" from '/[^']*'", "", " ".join(str(error).split()))  # no machine's paths
    return re.sub(r"[|`]", "'", told)[:200]


def in_a_process(name: str, task: Callable[[str, Path], Row]) -> Row:
    """Run a task in a fork: what an architecture breaks stays there."""
    with tempfile.TemporaryDirectory() as folder:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(SECONDS)
            try:
                row = task(name, Path(folder))
                os.write(writer, f"{row.verdict}\t{row.note}".encode())
            except BaseException as error:
                os.write(writer, f"DIFFERENT\t{type(error).__name__}: {_line(error)}".encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as file:
            text = file.read()
        os.waitpid(child, 0)
    verdict, _, note = text.partition("\t")
    if not verdict:
        return Row(name, "not built", f"it took more than {SECONDS} seconds or too much memory")
    return Row(name, verdict, note)  # type: ignore[arg-type]


def page(table: Iterable[Row]) -> str:
    """Return docs/architectures.md."""
    made = sorted(table, key=lambda row: row.name)
    count = {v: sum(row.verdict == v for row in made) for v in ("equal", "refused", "not built")}
    head = (Path(__file__).parent / "architectures.head.md").read_text(encoding="utf-8")
    facts = {"version": transformers.__version__, "all": len(made), **count}
    for name, value in facts.items():
        head = head.replace(f"{{{name}}}", str(value))
    lines = ["| architecture | verdict | how, or why not |", "|---|---|---|", *map(str, made)]
    return head + "\n".join(lines) + "\n"


def main() -> None:
    """Check architectures and write their rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="model types")
    parser.add_argument("-o", type=Path, default=PAGE, metavar="FILE")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    embedlm.load()  # what all need is imported once, before the forks
    table = {} if options.only is None else read(options.o)
    for name in options.only or sorted(MODEL_MAPPING_NAMES):
        table[name] = in_a_process(name, check)
        print(table[name], flush=True)
    options.o.write_text(page(table.values()), encoding="utf-8")


def read(file: Path) -> dict[str, Row]:
    """Return the rows of a page by their architectures."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    cells = re.findall(r"^\| `(.+?)` \| (.+?) \| (.*) \|$", text, re.M)
    return {name: Row(name, verdict, note) for name, verdict, note in cells}


if __name__ == "__main__":
    main()

"""Text written by a causal language model on this machine."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from embedlm.backbone import Backbone, gguf_folder, load_backbone, prepacked
from embedlm.backbone.content import content_digest, files_digest
from embedlm.backbone.memory import free_memory
from embedlm.backbone.views import copy_structure
from embedlm.errors import GenerationError, UnsupportedError
from embedlm.generation.decoding import STEP, Network, RunningText, continue_rows, in_batches
from embedlm.generation.generator import Answer, Chat, Sampling, as_lines
from embedlm.prompt.chat import render_chat
from embedlm.prompt.control import ControlTokens
from embedlm.schema.recipe import Backbone as BackboneRecipe

__all__ = [
    "LocalGenerator",
    "OwnGenerator",
    "StoredGenerator",
    "model_name",
]

_SHARE = 0.25
"""Of a card's free memory that keys and values may take."""


class LocalGenerator:
    """Generates with a causal language model of transformers, many chats at once.

    Each chat has a random stream of its own, so that its answer does not depend on what it is
    generated together with (up to the rounding of the model's logits).

    Args:
        model: as of AutoModelForCausalLM.
        tokenizer: its tokenizer; without a chat template, a chat is written as lines of
            "Role: content", and an answer ends with its line.
        name: the identity under which answers are cached.
        batch_size: chats of which those of like length are continued at once; None: 64 on a CPU,
            1,024 on a card.
        batch_tokens: tokens continued at once, new ones included; bounds the memory of the cache.
            None: 16,384 on a CPU, what fits on a card.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        *,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.control = ControlTokens(tokenizer)
        self.name = name
        most = _Most.of(model)
        self.batch_size = most.chats if batch_size is None else batch_size
        self.batch_tokens = most.tokens if batch_tokens is None else batch_tokens
        self.step = most.step
        self.templated = bool(getattr(tokenizer, "chat_template", None))
        self.network = Network(model)

    @classmethod
    def load(
        cls, source: str, *, adapters: Sequence[Path] = (), device: Any = None
    ) -> LocalGenerator:
        """Load a model folder or hub id.

        Args:
            source: the folder, GGUF file or hub id.
            adapters: folders of adapters, which are merged into it in order.
            device: None chooses CUDA, MPS or CPU.

        Raises:
            GenerationError: it is not a causal language model with its head.
            ModelError: it cannot be loaded.
        """
        recipe = BackboneRecipe(attention="native")
        try:
            backbone = load_backbone(
                gguf_folder(source),
                recipe,
                device=device,
                head=True,
                attn="sdpa",
                adapters=adapters,
            )
        except UnsupportedError as error:
            raise _no_writer(source) from error
        if not backbone.causal:
            raise _no_writer(source)
        network = backbone.language_model()
        with torch.inference_mode():
            prepacked.pack([network])  # a step's products are small: twice as many tokens a second
        return cls(network, backbone.tokenizer, model_name(source, adapters))

    def prompt(self, chat: Chat) -> str:
        """Return a chat as the string to continue; a model that thinks aloud answers at once."""
        if not self.templated:
            return as_lines(chat)
        text = render_chat(chat, self.tokenizer, enable_thinking=False)
        return f"{text.rstrip()}\n</think>\n\n" if text.rstrip().endswith("<think>") else text

    def ids(self, chat: Chat) -> list[int]:
        """Return the ids of a chat; a control token that a turn spells is read as text."""
        contents = [turn["content"] for turn in chat]
        turns = [{**turn, "content": self.control.hidden(turn["content"])} for turn in chat]
        return self.control.ids(self.prompt(turns), contents, special=not self.templated)

    def _plain_ids(self, chat: Chat) -> list[int]:
        """Return the ids of the turns' texts, one below the other."""
        contents = [turn["content"] for turn in chat]
        return self.control.ids(
            "\n\n".join(map(self.control.hidden, contents)), contents, special=True
        )

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, seeds: Sequence[int]
    ) -> Iterator[str | None]:
        """Yield the answer to each chat; None for one longer than the model's window."""
        for answer in self.answers(chats, sampling, seeds):
            yield None if answer.finish == "refused" else answer.text

    def answers(
        self, chats: Sequence[Chat], sampling: Sampling, seeds: Sequence[int], **how: Any
    ) -> Iterator[Answer]:
        """Yield the answer to each chat, in order; see `as_written`."""
        waiting: dict[int, Answer] = {}
        due = 0
        for place, answer in self.as_written(chats, sampling, seeds, **how):
            waiting[place] = answer
            while due in waiting:
                yield waiting.pop(due)
                due += 1

    def as_written(
        self,
        chats: Sequence[Chat],
        sampling: Sampling,
        seeds: Sequence[int],
        *,
        stop: str | None = None,
        logprobs: bool = False,
        plain: bool = False,
    ) -> Iterator[tuple[int, Answer]]:
        """Yield the place of each chat and its answer with how it ended, as batches are done.

        Args:
            chats: turns, by chat.
            sampling: how tokens are drawn.
            seeds: one for each chat.
            stop: a text at whose first appearance an answer ends; it is left out.
            logprobs: whether log-probabilities are computed (at temperature 1).
            plain: whether the turns' texts are continued as they stand, without a chat template.
        """
        how, read = _How(stop, logprobs), self._plain_ids if plain else self.ids
        for start in range(0, len(chats), self.batch_size):
            some = slice(start, start + self.batch_size)
            jobs = [(read(chat), seed) for chat, seed in zip(chats[some], seeds[some], strict=True)]
            for place, answer in self._as_written(jobs, sampling, how):
                yield start + place, answer

    def _as_written(
        self, jobs: list[tuple[list[int], int]], sampling: Sampling, how: _How
    ) -> Iterator[tuple[int, Answer]]:
        """Yield places and answers of some chats; those of like length are written together."""
        window, new = self.network.window, sampling.max_new_tokens
        sizes = [len(row) for row, _ in jobs]
        fit = [at for at, size in enumerate(sizes) if size + new <= window]
        for at in sorted(set(range(len(jobs))) - set(fit)):
            told = f"{sizes[at] + new} tokens, and the model's window has {window}"
            yield at, Answer(told, "refused")
        for places in in_batches([sizes[at] for at in fit], new, self.batch_tokens, self.step):
            chosen = [fit[place] for place in places]
            yield from zip(
                chosen, self._run([jobs[at] for at in chosen], sampling, how), strict=True
            )

    def continue_after(self, cache: Any, held: int, row: list[int], sampling: Sampling) -> str:
        """Return what follows a row of ids after cached tokens; the cache grows by both."""
        text = self._text(len(row))
        continue_rows(self.network, [row], sampling, [0], [text], cache=cache, held=held)
        return text.answer().text

    def _run(
        self, jobs: list[tuple[list[int], int]], sampling: Sampling, how: _How
    ) -> list[Answer]:
        """Continue the rows; on running out of memory, one half and then the other."""
        rows, seeds = [row for row, _ in jobs], [seed for _, seed in jobs]
        texts = [self._text(len(row), how.stop) for row in rows]
        try:
            continue_rows(self.network, rows, sampling, seeds, texts, logprobs=how.logprobs)
        except torch.OutOfMemoryError as error:
            if len(jobs) == 1:
                raise GenerationError(
                    f"one chat of {len(jobs[0][0])} tokens does not fit into memory; take a "
                    "smaller generator or an endpoint"
                ) from error
        else:
            return [text.answer() for text in texts]
        half = len(jobs) // 2
        return self._run(jobs[:half], sampling, how) + self._run(jobs[half:], sampling, how)

    def _text(self, prompt_tokens: int, stop: str | None = None) -> RunningText:
        return RunningText(self.tokenizer, self.stops, self.ended, prompt_tokens, stop)

    def ended(self, ids: list[int]) -> bool:
        """Return whether the answer is over: where chats are written as lines, its line is."""
        if self.templated or "\n" not in self.tokenizer.decode(ids[-1:]):
            return False
        return bool(self.tokenizer.decode(ids, skip_special_tokens=True).strip())

    @cached_property
    def stops(self) -> set[int]:
        """The tokens that end an answer."""
        return _stop_ids(self.model, self.tokenizer)


@dataclass(frozen=True, slots=True)
class _Most:
    """How much is continued at once where nothing is asked for; as here on a CPU."""

    chats: int = 64
    tokens: int = 16_384
    step: int = STEP
    """What a step costs besides its rows, in rows."""

    @classmethod
    def of(cls, model: Any) -> _Most:
        """Return what suits the device of a model: launching a card's kernels takes most of a step.

        Keys and values are counted as if no heads shared them.
        """
        weight, on_cpu = next(model.parameters(), None), cls()
        if weight is None or weight.device.type != "cuda":
            return on_cpu
        config = model.config.get_text_config()
        one = 2 * config.num_hidden_layers * config.hidden_size * weight.dtype.itemsize
        fits = int(_SHARE * (free_memory(weight.device) or 0) / one)
        return cls(1024, max(on_cpu.tokens, min(fits, 1 << 18)), 1024)


@dataclass(frozen=True, slots=True)
class _How:
    """How answers end and what is kept of them."""

    stop: str | None
    logprobs: bool


class StoredGenerator:
    """Generates with a model folder or hub id, which is loaded at the first chat."""

    def __init__(self, source: str, name: str, **how: Any) -> None:
        """Name a model.

        Args:
            source: folder, GGUF file or hub id.
            name: the identity under which answers are cached.
            **how: it is loaded, see `LocalGenerator.load`.
        """
        self.source, self.how = source, how
        self.loaded: LocalGenerator | None = None
        self.name = name

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, seeds: Sequence[int]
    ) -> Iterator[str | None]:
        """Yield the answer to each chat."""
        yield from self.writer().generate(chats, sampling, seeds)

    def writer(self) -> LocalGenerator:
        """Return the model, loaded."""
        if self.loaded is None:
            self.loaded = LocalGenerator.load(self.source, **self.how)
        return self.loaded


class OwnGenerator:
    """Generates with a backbone that was loaded with its head: no second copy of the weights."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.name = model_name(backbone.name, backbone.merged)

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, seeds: Sequence[int]
    ) -> Iterator[str | None]:
        """Yield the answer to each chat."""
        yield from self.writer().generate(chats, sampling, seeds)

    def writer(self) -> LocalGenerator:
        """Return the backbone as a writer."""
        network = _with_packed_head(self.backbone.language_model())
        return LocalGenerator(network, self.backbone.tokenizer, self.name)


def model_name(source: str, adapters: Sequence[Path] = ()) -> str:
    """Return a model's identity: a digest of its folder or GGUF file, or its hub id.

    Args:
        source: folder, GGUF file, hub id or built-in model.
        adapters: folders of those that are merged into it, which make it another model.
    """
    content = content_digest(source)
    name = f"hub:{source}" if content is None else f"model:{content}"
    return "+".join([name, *(str(files_digest(folder)) for folder in adapters)])


def _with_packed_head(view: Any) -> Any:
    """Return a view of an embedder's network with a head of its own, whose products are fast.

    For the few rows of a step they take half the time. The head that the embedder reads, and may
    train, stays as it is.
    """
    network: Any = copy_structure(view)
    shared = network.get_output_embeddings()
    own = copy.copy(shared)
    own._parameters = dict(shared._parameters)
    with torch.inference_mode():
        prepacked.pack([own])
    network.set_output_embeddings(own)
    return network


def _no_writer(source: str) -> GenerationError:
    return GenerationError(
        f"{source!r} is not a causal language model with its head, so it cannot write text; name "
        "one with generator=: a model folder, a hub id, or http://host:port/v1#model"
    )


def _stop_ids(model: Any, tokenizer: Any) -> set[int]:
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return {int(i) for i in (*ids, tokenizer.eos_token_id) if i is not None}

"""Text written by a causal language model on this machine.

Shapes: B chats of a batch, V vocabulary.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embedlm.backbone import Backbone, gguf_folder, load_backbone
from embedlm.errors import GenerationError, UnsupportedError
from embedlm.generation.generator import Answer, Chat, Sampling, as_lines
from embedlm.prompt.chat import render_chat
from embedlm.prompt.control import ControlTokens
from embedlm.schema.recipe import Backbone as BackboneRecipe

__all__ = [
    "LocalGenerator",
    "OwnGenerator",
    "StoredGenerator",
    "draw",
    "model_name",
    "stored_keys",
]

TokenRows = list[list[int]]
_SAMPLE = 1 << 20
"""Bytes read at each end of a file to identify it."""
_KINDS = (".json", ".jinja", ".model", ".txt", ".safetensors", ".bin")


class LocalGenerator:
    """Generates with a causal language model of transformers, many chats at once.

    Each chat has a random stream of its own, so that its answer does not depend on what it is
    generated together with (up to the rounding of the model's logits).

    Args:
        model: as of AutoModelForCausalLM.
        tokenizer: its tokenizer; without a chat template, a chat is written as lines of
            "Role: content", and an answer ends with its line.
        name: the identity under which answers are cached.
        batch_size: chats continued at once.
        batch_tokens: tokens of these chats, new ones included; bounds the memory of the cache.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        *,
        batch_size: int = 64,
        batch_tokens: int = 16_384,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.control = ControlTokens(tokenizer)
        self.name = name
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self.templated = bool(getattr(tokenizer, "chat_template", None))
        self._accepts = set(inspect.signature(model.forward).parameters)

    @classmethod
    def load(cls, source: str) -> LocalGenerator:
        """Load a model folder or hub id.

        Raises:
            GenerationError: it is not a causal language model with its head.
            ModelError: it cannot be loaded.
        """
        recipe = BackboneRecipe(attention="native")
        try:
            backbone = load_backbone(gguf_folder(source), recipe, head=True, attn="sdpa")
        except UnsupportedError as error:
            raise _no_writer(source) from error
        if not backbone.causal:
            raise _no_writer(source)
        return cls(backbone.language_model(), backbone.tokenizer, model_name(source))

    def prompt(self, chat: Chat) -> str:
        """Return a chat as the string to continue."""
        if self.templated:
            return render_chat(chat, self.tokenizer)
        return as_lines(chat)

    def ids(self, chat: Chat) -> list[int]:
        """Return the ids of a chat; a control token that a turn spells is read as text."""
        contents = [turn["content"] for turn in chat]
        turns = [{**turn, "content": self.control.hidden(turn["content"])} for turn in chat]
        return self.control.ids(self.prompt(turns), contents, special=not self.templated)

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, seeds: Sequence[int]
    ) -> Iterator[str | None]:
        """Yield the answer to each chat; None for one longer than the model's window."""
        for answer in self.answers(chats, sampling, seeds):
            yield None if answer.finish == "refused" else answer.text

    def answers(
        self,
        chats: Sequence[Chat],
        sampling: Sampling,
        seeds: Sequence[int],
        *,
        stop: str | None = None,
        logprobs: bool = False,
    ) -> Iterator[Answer]:
        """Yield the answer to each chat with how it ended.

        Args:
            chats: turns, by chat.
            sampling: how tokens are drawn.
            seeds: one for each chat.
            stop: a text at whose first appearance an answer ends; it is left out.
            logprobs: whether log-probabilities are computed (at temperature 1).
        """
        config = self.model.config.get_text_config()
        window = getattr(config, "max_position_embeddings", None) or 1 << 30
        jobs: list[tuple[list[int], int]] = []
        for chat, seed in zip(chats, seeds, strict=True):
            row = self.ids(chat)
            size = len(row) + sampling.max_new_tokens
            if jobs and self._full([*jobs, (row, seed)], sampling.max_new_tokens):
                yield from self._run(jobs, sampling, stop, logprobs)
                jobs = []
            if size <= window:
                jobs.append((row, seed))
                continue
            yield from self._run(jobs, sampling, stop, logprobs)
            jobs = []
            yield Answer(f"{size} tokens, and the model's window has {window}", "refused")
        yield from self._run(jobs, sampling, stop, logprobs)

    def continue_after(self, cache: Any, held: int, row: list[int], sampling: Sampling) -> str:
        """Return what follows a row of ids after cached tokens; the cache grows by both."""
        return self._continue([row], sampling, [0], cache=cache, held=held)[0].text

    def _full(self, jobs: list[tuple[list[int], int]], new: int) -> bool:
        longest = max(len(row) for row, _ in jobs)
        return len(jobs) > self.batch_size or len(jobs) * (longest + new) > self.batch_tokens

    def _run(
        self,
        jobs: list[tuple[list[int], int]],
        sampling: Sampling,
        stop: str | None,
        logprobs: bool,
    ) -> list[Answer]:
        """Continue the rows; on running out of memory, one half and then the other."""
        if not jobs:
            return []
        rows, seeds = [row for row, _ in jobs], [seed for _, seed in jobs]
        try:
            return self._continue(rows, sampling, seeds, stop=stop, logprobs=logprobs)
        except torch.OutOfMemoryError as error:
            if len(jobs) == 1:
                raise GenerationError(
                    f"one chat of {len(jobs[0][0])} tokens does not fit into memory; take a "
                    "smaller generator or an endpoint"
                ) from error
        half = len(jobs) // 2
        first = self._run(jobs[:half], sampling, stop, logprobs)
        return first + self._run(jobs[half:], sampling, stop, logprobs)

    @torch.inference_mode()
    def _continue(
        self,
        rows: TokenRows,
        sampling: Sampling,
        seeds: list[int],
        *,
        stop: str | None = None,
        logprobs: bool = False,
        cache: Any = None,
        held: int = 0,
    ) -> list[Answer]:
        """Continue rows padded on the left, each until it stops.

        Args:
            rows: token ids of each prompt.
            sampling: how tokens are drawn.
            seeds: one for each row's random stream.
            stop: a text that ends an answer.
            logprobs: whether log-probabilities are computed.
            cache: keys and values of tokens before every row; it grows.
            held: the number of tokens in the cache.
        """
        device = next(self.model.parameters()).device
        longest = max(map(len, rows))
        pads = [longest - len(row) for row in rows]
        step = torch.tensor([[0] * pad + row for pad, row in zip(pads, rows, strict=True)])
        mask = torch.tensor([[1] * held + [0] * pad + [1] * (longest - pad) for pad in pads])
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, held:]
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        texts = [_Text(self, len(row), stop) for row in rows]
        for _ in range(sampling.max_new_tokens):
            inputs = {"input_ids": step, "attention_mask": mask, "position_ids": positions}
            logits_BV, cache = self._step(
                {name: value.to(device) for name, value in inputs.items()}, cache
            )
            drawn = draw(logits_BV, sampling, streams)
            likely = _log_likelihoods(logits_BV, drawn) if logprobs else [None] * len(rows)
            for text, token, logprob in zip(texts, drawn, likely, strict=True):
                text.take(token, logprob)
            if not any(text.running for text in texts):
                break
            step = torch.tensor(drawn)[:, None]
            mask = torch.cat([mask, torch.ones(len(rows), 1, dtype=mask.dtype)], dim=1)
            positions = positions[:, -1:] + 1
        return [text.answer() for text in texts]

    def last_logits(self, ids_BT: Tensor, mask_BT: Tensor, count: int) -> Tensor:
        """Return the logits after the last `count` tokens of rows padded on the left."""
        device = next(self.model.parameters()).device
        positions_BT = (mask_BT.cumsum(1) - 1).clamp_min(0)
        given = {"input_ids": ids_BT, "attention_mask": mask_BT, "position_ids": positions_BT}
        inputs: dict[str, Any] = {k: v.to(device) for k, v in given.items() if k in self._accepts}
        if "logits_to_keep" in self._accepts:
            inputs["logits_to_keep"] = count
        logits_BTV: Tensor = self.model(**inputs, use_cache=False).logits
        return logits_BTV[:, -count:]

    def _step(self, inputs: dict[str, Any], cache: Any) -> tuple[Tensor, Any]:
        """Return the logits after the last token, and the keys and values so far."""
        inputs = {name: value for name, value in inputs.items() if name in self._accepts}
        if "logits_to_keep" in self._accepts:  # else all of a prompt's logits: GBs
            inputs["logits_to_keep"] = 1
        name = "cache" if "cache" in self._accepts else "past_key_values"
        out = self.model(**inputs, **{name: cache}, use_cache=True)
        return out.logits[:, -1], stored_keys(out)

    def ended(self, ids: list[int]) -> bool:
        """Return whether the answer is over: where chats are written as lines, its line is."""
        if self.templated or "\n" not in self.tokenizer.decode(ids[-1:]):
            return False
        return bool(self.tokenizer.decode(ids, skip_special_tokens=True).strip())

    @cached_property
    def stops(self) -> set[int]:
        """The tokens that end an answer."""
        return _stop_ids(self.model, self.tokenizer)


class _Text:
    """An answer that is being written."""

    def __init__(self, writer: LocalGenerator, prompt_tokens: int, stop: str | None) -> None:
        self.writer, self.stop = writer, stop
        self.prompt_tokens = prompt_tokens
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.running = True

    def take(self, token: int, logprob: float | None) -> None:
        """Add the next token, unless the answer is over."""
        if not self.running:
            return
        if token in self.writer.stops:
            self.running = False
            return
        self.ids.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        stopped = self.stop is not None and self.stop in self._text().lstrip()
        self.running = not stopped and not self.writer.ended(self.ids)

    def answer(self) -> Answer:
        """Return it as it stands."""
        text = self._text()
        if self.stop is not None:
            text = text.lstrip().split(self.stop)[0]
        likely = sum(self.logprobs) / len(self.logprobs) if self.logprobs else None
        finish = "length" if self.running else "stop"
        return Answer(text, finish, self.prompt_tokens, len(self.ids), likely)

    def _text(self) -> str:
        return str(self.writer.tokenizer.decode(self.ids, skip_special_tokens=True))


def _log_likelihoods(logits_BV: Tensor, tokens: list[int]) -> list[float | None]:
    """Return the log-probability of a token of each row."""
    chosen_B1 = torch.tensor(tokens, device=logits_BV.device)[:, None]
    return list(torch.log_softmax(logits_BV.float(), -1).gather(1, chosen_B1)[:, 0].tolist())


class StoredGenerator:
    """Generates with a model folder or hub id, which is loaded at the first chat."""

    def __init__(self, source: str, name: str) -> None:
        self.source = source
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
            self.loaded = LocalGenerator.load(self.source)
        return self.loaded


class OwnGenerator:
    """Generates with a backbone that was loaded with its head: no second copy of the weights."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.name = model_name(str(backbone.name))

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, seeds: Sequence[int]
    ) -> Iterator[str | None]:
        """Yield the answer to each chat."""
        yield from self.writer().generate(chats, sampling, seeds)

    def writer(self) -> LocalGenerator:
        """Return the backbone as a writer."""
        network = self.backbone.language_model()
        return LocalGenerator(network, self.backbone.tokenizer, self.name)


def stored_keys(output: Any) -> Any:
    """Return the keys and values that a pass leaves, by the name its transformers gives them."""
    named = {entry.name for entry in fields(output)}
    return getattr(output, "cache" if "cache" in named else "past_key_values")


def draw(logits_BV: Tensor, sampling: Sampling, streams: Sequence[torch.Generator]) -> list[int]:
    """Draw a token for each row by temperature and nucleus (top-p) sampling.

    One number is taken from each row's stream and looked up in the row's cumulative distribution.
    """
    if sampling.temperature == 0:
        return [int(token) for token in logits_BV.argmax(-1)]
    logits_BV = logits_BV.cpu() if logits_BV.device.type == "mps" else logits_BV  # no float64 there
    p_BV = torch.softmax(logits_BV.double() / sampling.temperature, dim=-1)
    ids_BV: Tensor | None = None
    if sampling.top_p < 1:
        p_BV, ids_BV = p_BV.sort(dim=-1, descending=True, stable=True)
        # The token that crosses the bound still belongs to the nucleus.
        p_BV = p_BV.masked_fill(p_BV.cumsum(-1) - p_BV >= sampling.top_p, 0)
    cumulative_BV = p_BV.cumsum(-1)
    u_B1 = torch.stack([torch.rand(1, generator=g, dtype=torch.float64) for g in streams])
    target_B1 = u_B1.to(p_BV.device) * cumulative_BV[:, -1:]
    at_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True)
    at_B1 = at_B1.clamp_max(p_BV.shape[-1] - 1)
    chosen_B1 = at_B1 if ids_BV is None else ids_BV.gather(1, at_B1)
    return [int(token) for token in chosen_B1[:, 0]]


def model_name(source: str) -> str:
    """Return a model's identity: a digest of the folder's contents, or the hub id.

    Large files count by their size and both ends, since training changes all values of a tensor.
    """
    folder = Path(source)
    if not folder.is_dir():
        return f"hub:{source}"
    seen = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix not in _KINDS or not file.is_file():
            continue
        size = file.stat().st_size
        with file.open("rb") as stream:
            seen.update(f"{file.name}\0{size}\0".encode())
            seen.update(stream.read(_SAMPLE))
            stream.seek(max(0, size - _SAMPLE))
            seen.update(stream.read(_SAMPLE))
    return f"model:{seen.hexdigest()[:16]}"


def _no_writer(source: str) -> GenerationError:
    return GenerationError(
        f"{source!r} is not a causal language model with its head, so it cannot write text; name "
        "one with generator=: a model folder, a hub id, or http://host:port/v1#model"
    )


def _stop_ids(model: Any, tokenizer: Any) -> set[int]:
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return {int(i) for i in (*ids, tokenizer.eos_token_id) if i is not None}

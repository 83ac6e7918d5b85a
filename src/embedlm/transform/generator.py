"""Where generated text comes from: a model on this machine, or an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from embedlm.errors import GenerationError, require

__all__ = [
    "Chat",
    "EndpointGenerator",
    "Generator",
    "LocalGenerator",
    "Sampling",
    "resolve_generator",
]

BATCH = 64
"""Chats that a local model continues at once."""

Chat = list[dict[str, str]]
"""Turns of {"role": ..., "content": ...}."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; temperature 0 takes the likeliest."""

    temperature: float = 0.7
    top_p: float = 1.0
    max_new_tokens: int = 96


@runtime_checkable
class Generator(Protocol):
    """Continues chats."""

    @property
    def name(self) -> str:
        """What tells its outputs from another's; part of the cache's key."""

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, seeds: Sequence[int]
    ) -> Iterator[str]:
        """Yield the answer to each chat, in order; a chat and its seed decide the answer."""


class LocalGenerator:
    """Generates with a causal language model of transformers, many chats at once.

    Each chat has a random stream of its own, so that its answer does not depend on what it is
    generated together with (up to the rounding of the model's logits).
    """

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._name = name

    @property
    def name(self) -> str:
        """The model's name."""
        return self._name

    @classmethod
    def load(cls, source: str) -> LocalGenerator:
        """Load a model folder or hub id."""
        from embedlm.backbone import load_backbone
        from embedlm.recipe import Backbone

        backbone = load_backbone(source, Backbone(attention="native"), head=True, attn="sdpa")
        return cls(backbone.whole_model(), backbone.tokenizer, source)

    def prompt(self, chat: Chat) -> str:
        """Return a chat as the string to continue."""
        if getattr(self.tokenizer, "chat_template", None):
            return str(
                self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            )
        turns = [f"{turn['role'].capitalize()}: {turn['content']}" for turn in chat]
        return "\n".join([*turns, "Assistant:"])

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, seeds: Sequence[int]
    ) -> Iterator[str]:
        """Yield the answer to each chat."""
        chat_format = bool(getattr(self.tokenizer, "chat_template", None))
        limit = getattr(self.model.config, "max_position_embeddings", None) or 1 << 30
        for part in batches(zip(chats, seeds, strict=True), BATCH):
            prompts = [self.prompt(chat) for chat, _ in part]
            ids = self.tokenizer(prompts, add_special_tokens=not chat_format)["input_ids"]
            rows = [row[-max(1, limit - sampling.max_new_tokens) :] for row in ids]
            yield from self._continue(rows, sampling, [seed for _, seed in part])

    def _continue(self, rows: list[list[int]], sampling: Sampling, seeds: list[int]) -> list[str]:
        """Continue rows padded on the left, each until it stops."""
        device = next(self.model.parameters()).device
        longest = max(map(len, rows))
        pads = [longest - len(row) for row in rows]
        step = torch.tensor([[0] * pad + row for pad, row in zip(pads, rows, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
        places = (mask.cumsum(1) - 1).clamp_min(0)
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        stops = _stop_ids(self.model, self.tokenizer)
        new: list[list[int]] = [[] for _ in rows]
        running = [True] * len(rows)
        cache: Any = None
        with torch.inference_mode():
            for _ in range(sampling.max_new_tokens):
                out = self.model(
                    input_ids=step.to(device),
                    attention_mask=mask.to(device),
                    position_ids=places.to(device),
                    past_key_values=cache,
                    use_cache=True,
                )
                cache = out.past_key_values
                logits_BV = out.logits[:, -1].float().cpu()
                drawn = [_draw(v, sampling, g) for v, g in zip(logits_BV, streams, strict=True)]
                for row, token in enumerate(drawn):
                    running[row] = running[row] and token not in stops
                    if running[row]:
                        new[row].append(token)
                if not any(running):
                    break
                step = torch.tensor(drawn)[:, None]
                mask = torch.cat([mask, torch.ones(len(rows), 1, dtype=mask.dtype)], dim=1)
                places = places[:, -1:] + 1
        return [str(self.tokenizer.decode(ids, skip_special_tokens=True)) for ids in new]


def _stop_ids(model: Any, tokenizer: Any) -> set[int]:
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return {int(i) for i in (*ids, tokenizer.eos_token_id) if i is not None}


def _draw(logits_V: Tensor, sampling: Sampling, random: torch.Generator) -> int:
    """Draw a token by temperature and nucleus (top-p) sampling."""
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    probability_V = torch.softmax(logits_V / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered_V, ids_V = probability_V.sort(descending=True)
        # The token that crosses the bound still belongs to the nucleus.
        outside_V = ordered_V.cumsum(0) - ordered_V >= sampling.top_p
        probability_V = probability_V.index_fill(0, ids_V[outside_V], 0.0)
    return int(torch.multinomial(probability_V, 1, generator=random))


class EndpointGenerator:
    """Generates with any server that speaks OpenAI's chat completions."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        concurrency: int = 8,
        timeout: float = 60.0,
        retries: int = 5,
    ) -> None:
        openai = require("openai", "synth")
        self._openai = openai
        self._client = openai.OpenAI(
            base_url=base_url,
            api_key=api_key or os.environ.get("OPENAI_API_KEY") or "none",
            timeout=timeout,
            max_retries=0,
        )
        self.base_url, self.model = base_url, model
        self.concurrency, self.retries = concurrency, retries
        self.wait = 0.5

    @property
    def name(self) -> str:
        """The model's name; the address does not change what it writes."""
        return f"endpoint:{self.model}"

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, seeds: Sequence[int]
    ) -> Iterator[str]:
        """Yield the answer to each chat; up to `concurrency` are asked for at once."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            jobs = zip(chats, seeds, strict=True)
            yield from pool.map(lambda job: self._ask(job[0], sampling, job[1]), jobs)

    def _ask(self, chat: Chat, sampling: Sampling, seed: int) -> str:
        openai = self._openai
        passing = (
            openai.APIConnectionError,  # timeouts too
            openai.RateLimitError,
            openai.InternalServerError,
        )
        problem: Exception | None = None
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(min(self.wait * 2 ** (attempt - 1), 30))
            try:
                answer = self._client.chat.completions.create(
                    model=self.model,
                    messages=chat,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=sampling.max_new_tokens,
                    seed=seed,
                )
                return _content(answer)
            except passing as error:
                problem = error
            except (openai.OpenAIError, ValueError) as error:
                problem = error
                break
        raise GenerationError(
            f"{self.base_url} (model {self.model!r}) gave no text after {attempt + 1} "
            f"attempt{'s' if attempt else ''}: {problem}. What was generated before is in the "
            "cache; check the endpoint and run again"
        ) from problem


def _content(answer: Any) -> str:
    choices = getattr(answer, "choices", None)
    if not choices or choices[0].message is None:
        raise GenerationError("the endpoint's answer holds no choices")
    return str(choices[0].message.content or "")


def resolve_generator(spec: Any) -> Generator:
    """Return the generator that was meant.

    Args:
        spec: a `Generator`; "http://host/v1#model"; a model folder or hub id; or an `Embedder`,
            whose own model then writes.

    Raises:
        GenerationError: nothing of these.
    """
    if isinstance(spec, Generator):
        return spec
    if isinstance(spec, str) and spec.startswith(("http://", "https://")):
        url, mark, model = spec.partition("#")
        if not mark or not model:
            raise GenerationError(
                f"generator {spec!r} names no model; write http://host:port/v1#model"
            )
        return EndpointGenerator(url, model)
    if isinstance(spec, str | os.PathLike):
        return LocalGenerator.load(str(spec))
    backbone = getattr(spec, "backbone", None)
    if backbone is not None:
        return LocalGenerator.load(str(backbone.name))
    raise GenerationError(
        f"generator is {type(spec).__name__}; give a model folder, http://host/v1#model, or an "
        "object with name and generate()"
    )


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of up to `size` items."""
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch

"""Rows of tokens are continued by a causal language model, many at once.

What all rows begin with (a task, its examples) is read once, and its keys and values are shared. A
row that is over leaves the batch once half of the rows are.

Shapes: B rows of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from embedlm.errors import GenerationError
from embedlm.generation.generator import Answer, Sampling, ended, spoken

__all__ = ["STEP", "Network", "RunningText", "continue_rows", "draw", "in_batches", "stored_keys"]

TokenRows = Sequence[list[int]]
_LEAST_SHARED = 16
"""Tokens that rows must share before these are read apart: a pass of its own costs a little."""
STEP = 8
"""What a step costs besides its rows, in rows, on a CPU: the weights are read from memory once."""
_COLDEST = 1e-30
"""Lower temperatures draw the same, and are 0 among the numbers that they divide."""
_PART = 256
"""Tokens whose probabilities are summed at once where one is looked up."""
_LIKELY = 512
"""Tokens that are sorted in search of a nucleus, before all are."""


class Network:
    """A causal language model of transformers, a pass at a time."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._accepts = set(inspect.signature(model.forward).parameters)

    @property
    def window(self) -> int:
        """The tokens that the model can see at most."""
        config = self.model.config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or 1 << 30

    @property
    def takes_positions(self) -> bool:
        """Whether a pass is told each token's position, so that padding may stand anywhere."""
        return "position_ids" in self._accepts

    def step(
        self, ids_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, cache: Any
    ) -> tuple[Tensor, Any]:
        """Return the logits after the last token, (B, V), and the keys and values so far."""
        inputs = self._inputs(ids_BT, mask_BT, positions_BT, 1)  # all logits of a prompt: GBs
        name = "cache" if "cache" in self._accepts else "past_key_values"
        out = self.model(**inputs, **{name: cache}, use_cache=True)
        return out.logits[:, -1], stored_keys(out)

    def last_logits(self, ids_BT: Tensor, mask_BT: Tensor, count: int) -> Tensor:
        """Return the logits after the last `count` tokens of rows padded on the left."""
        positions_BT = (mask_BT.cumsum(1) - 1).clamp_min(0)
        inputs = self._inputs(ids_BT, mask_BT, positions_BT, count)
        logits_BTV: Tensor = self.model(**inputs, use_cache=False).logits
        return logits_BTV[:, -count:]

    def _inputs(
        self, ids_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, count: int
    ) -> dict[str, Any]:
        device = next(self.model.parameters()).device
        given = {"input_ids": ids_BT, "attention_mask": mask_BT, "position_ids": positions_BT}
        inputs: dict[str, Any] = {k: v.to(device) for k, v in given.items() if k in self._accepts}
        if "logits_to_keep" in self._accepts:
            inputs["logits_to_keep"] = count
        return inputs


class RunningText:
    """An answer that is being written."""

    def __init__(
        self,
        tokenizer: Any,
        stops: set[int],
        ended: Callable[[list[int]], bool],
        prompt_tokens: int,
        stop: str | None,
    ) -> None:
        """Begin an answer.

        Args:
            tokenizer: of the model.
            stops: tokens that end an answer.
            ended: tells whether the tokens so far end it.
            prompt_tokens: of what it answers.
            stop: a text at whose first appearance it ends.
        """
        self.tokenizer, self.stops, self.ended, self.stop = tokenizer, stops, ended, stop
        self.prompt_tokens = prompt_tokens
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.running = True

    def take(self, token: int, logprob: float | None) -> None:
        """Add the next token, unless the answer is over."""
        if not self.running:
            return
        if token in self.stops:
            self.running = False
            return
        self.ids.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        stopped = self.stop is not None and self.stop in (spoken(self._text()) or "").lstrip()
        self.running = not stopped and not self.ended(self.ids)

    def answer(self) -> Answer:
        """Return it as it stands."""
        text, finish = ended(self._text(), self.stop, cut=self.running)
        likely = sum(self.logprobs) / len(self.logprobs) if self.logprobs else None
        return Answer(text, finish, self.prompt_tokens, len(self.ids), likely)

    def _text(self) -> str:
        return str(self.tokenizer.decode(self.ids, skip_special_tokens=True))


@torch.inference_mode()
def continue_rows(
    network: Network,
    rows: TokenRows,
    sampling: Sampling,
    seeds: Sequence[int],
    texts: Sequence[RunningText],
    *,
    logprobs: bool = False,
    cache: Any = None,
    held: int = 0,
) -> None:
    """Continue rows, padded on the left, until each text is over.

    Args:
        network: continues them.
        rows: token ids of each prompt.
        sampling: how tokens are drawn.
        seeds: one for each row's random stream.
        texts: take the new tokens of each row.
        logprobs: whether log-probabilities are computed.
        cache: keys and values of tokens before every row; it grows.
        held: the number of tokens in the cache.
    """
    if cache is None:
        cache, held = _read_shared(network, rows)
        rows = [row[held:] for row in rows]
    longest = max(map(len, rows))
    pads = [longest - len(row) for row in rows]
    step_BT = torch.tensor([[0] * pad + row for pad, row in zip(pads, rows, strict=True)])
    mask_BT = torch.tensor([[1] * held + [0] * pad + [1] * (longest - pad) for pad in pads])
    positions_BT = (mask_BT.cumsum(1) - 1).clamp_min(0)[:, held:]
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    for _ in range(sampling.max_new_tokens):
        logits_BV, cache = network.step(step_BT, mask_BT, positions_BT, cache)
        drawn = draw(logits_BV, sampling, streams)
        likely = _log_likelihoods(logits_BV, drawn) if logprobs else [None] * len(texts)
        for text, token, logprob in zip(texts, drawn, likely, strict=True):
            text.take(token, logprob)
        left = [at for at, text in enumerate(texts) if text.running]
        if not left:
            return
        if 2 * len(left) > len(texts) or not _is_attention(cache):
            left = list(range(len(texts)))
        else:
            cache.batch_select_indices(torch.tensor(left, device=logits_BV.device))
            texts, streams = [texts[at] for at in left], [streams[at] for at in left]
        step_BT = torch.tensor([drawn[at] for at in left])[:, None]
        mask_BT = torch.cat([mask_BT[left], torch.ones_like(step_BT)], dim=1)
        positions_BT = positions_BT[left, -1:] + 1


def _read_shared(network: Network, rows: TokenRows) -> tuple[Any, int]:
    """Return the keys and values of the tokens that all rows begin with, and how many there are."""
    shared = _shared(rows)
    if len(rows) < 2 or shared < _LEAST_SHARED or not network.takes_positions:
        return None, 0
    ids_1T = torch.tensor([rows[0][:shared]])
    _, cache = network.step(ids_1T, torch.ones_like(ids_1T), torch.arange(shared)[None], None)
    # A window is counted over places, so that padding between prefix and row would narrow it.
    if not _is_attention(cache) or any(cache.is_sliding):
        return None, 0
    cache.batch_repeat_interleave(len(rows))
    return cache, shared


def _shared(rows: TokenRows) -> int:
    """Return how many tokens all rows begin with; each keeps one of its own."""
    first, last = min(rows), max(rows)
    most = min(len(first), len(last)) - 1
    return next((at for at in range(most) if first[at] != last[at]), most)


def _is_attention(cache: Any) -> bool:
    """Return whether a cache holds keys and values alone, by row."""
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return all(type(layer) in kinds for layer in getattr(cache, "layers", [None]))


def in_batches(
    sizes: Sequence[int], new: int, most_tokens: int, step: int = STEP
) -> list[list[int]]:
    """Return the places of rows in batches, longest first, that waste little on padding.

    Args:
        sizes: tokens of each row.
        new: tokens that each is continued by at most.
        most_tokens: of a batch, new ones and padding included.
        step: what a step costs besides its rows, in rows.
    """
    batches: list[list[int]] = []
    longest = padding = 0
    for at in sorted(range(len(sizes)), key=lambda at: -sizes[at]):
        padding += longest - sizes[at]
        full = not batches or (len(batches[-1]) + 1) * (longest + new) > most_tokens
        if full or padding > step * new:
            batches.append([])
            longest, padding = sizes[at], 0
        batches[-1].append(at)
    return batches


def _log_likelihoods(logits_BV: Tensor, tokens: list[int]) -> list[float | None]:
    """Return the log-probability of a token of each row."""
    chosen_B1 = torch.tensor(tokens, device=logits_BV.device)[:, None]
    return list(torch.log_softmax(logits_BV.float(), -1).gather(1, chosen_B1)[:, 0].tolist())


def stored_keys(output: Any) -> Any:
    """Return the keys and values that a pass leaves, by the name its transformers gives them."""
    named = {entry.name for entry in fields(output)}
    return getattr(output, "cache" if "cache" in named else "past_key_values")


def draw(logits_BV: Tensor, sampling: Sampling, streams: Sequence[torch.Generator]) -> list[int]:
    """Draw a token for each row by temperature and nucleus (top-p) sampling.

    One number is taken from each row's stream and looked up in the row's cumulative distribution.

    Raises:
        GenerationError: no token of a row has a likelihood, for logits are NaN or infinite.
    """
    on_mps = logits_BV.device.type == "mps"  # where there is no float64
    logits_BV = logits_BV.cpu().float() if on_mps else logits_BV.float()
    most_B1 = logits_BV.amax(-1, keepdim=True)
    if not most_B1.isfinite().all():  # one that is not a number is the largest
        raise GenerationError(
            "the model's logits are not numbers (NaN or infinity): its weights are damaged, or its "
            "numbers overflow; try dtype float32, or another model"
        )
    if sampling.temperature == 0:
        return list(logits_BV.argmax(-1).tolist())
    below_BV = logits_BV - most_B1  # divided: no overflow
    p_BV = torch.softmax(below_BV / max(sampling.temperature, _COLDEST), dim=-1)
    ids_BV: Tensor | None = None
    if sampling.top_p < 1:
        p_BV, ids_BV = _nucleus(p_BV, sampling.top_p)
    u_B1 = torch.stack([torch.rand(1, generator=g, dtype=torch.float64) for g in streams])
    at_B1 = _looked_up(p_BV, u_B1.to(p_BV.device))
    chosen_B1 = at_B1 if ids_BV is None else ids_BV.gather(1, at_B1)
    return list(chosen_B1[:, 0].tolist())


def _looked_up(p_BV: Tensor, u_B1: Tensor) -> Tensor:
    """Return where shares of the cumulative distributions lie, at_B1; never where p is 0.

    First the part, by the sums of `_PART` numbers each, then the place in it: the running sum over
    a whole vocabulary took a tenth of a step.
    """
    p_BPW = F.pad(p_BV, (0, -p_BV.shape[-1] % _PART)).unflatten(-1, (-1, _PART))
    sum_BP = p_BPW.sum(-1).double()
    upto_BP = sum_BP.cumsum(-1)
    target_B1 = u_B1 * upto_BP[:, -1:]
    part_B1 = torch.searchsorted(upto_BP, target_B1, right=True)
    part_B1 = torch.minimum(part_B1, _last_above_zero(sum_BP))
    p_BW = p_BPW.gather(1, part_B1[..., None].expand(-1, -1, _PART))[:, 0]
    left_B1 = target_B1 - (upto_BP - sum_BP).gather(1, part_B1)
    at_B1 = torch.searchsorted(p_BW.cumsum(-1, dtype=torch.float64), left_B1, right=True)
    return part_B1 * _PART + torch.minimum(at_B1, _last_above_zero(p_BW))


def _last_above_zero(x_BN: Tensor) -> Tensor:
    """Return the place of each row's last number above 0, at_B1."""
    return x_BN.shape[-1] - 1 - (x_BN.flip(-1) > 0).int().argmax(-1, keepdim=True)


def _nucleus(p_BV: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Return the likeliest tokens' probabilities, the likeliest first, and their ids.

    What lies outside the nucleus has 0. Of equal ones the lower id is first. The likeliest
    `_LIKELY` are sorted alone where they hold every row's nucleus: they nearly always do.
    """
    for count in (_LIKELY, p_BV.shape[-1]):
        if count > p_BV.shape[-1]:
            continue
        ids_BK = p_BV.topk(count, sorted=False).indices.sort(-1).values
        sorted_BK, order_BK = p_BV.gather(1, ids_BK).sort(dim=-1, descending=True, stable=True)
        # The token that crosses the bound still belongs to the nucleus.
        before_BK = sorted_BK.cumsum(-1, dtype=torch.float64) - sorted_BK
        inside_BK = before_BK < top_p
        if bool((~inside_BK | (sorted_BK > sorted_BK[:, -1:])).all()):
            break  # none of those left out is as likely as one inside
    return sorted_BK.masked_fill(~inside_BK, 0), ids_BK.gather(1, order_BK)

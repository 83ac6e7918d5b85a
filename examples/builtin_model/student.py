"""The student: a Llama whose layers see texts back to back, without padding, then a projection."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer

MAX_TOKENS = 256


class Spans(NamedTuple):
    """Where the texts begin that lie back to back on a GPU, with the end of the last."""

    starts_N: Tensor
    longest: int


Lengths = Sequence[int] | Spans


class Layer(nn.Module):
    """One layer; its parameters have transformers' names."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, inner = config["hidden_size"], config["intermediate_size"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.head = config["head_dim"]
        self.eps = config["rms_norm_eps"]
        sizes = {"q": self.heads, "k": self.kv_heads, "v": self.kv_heads}
        self.self_attn = nn.ModuleDict(
            {f"{k}_proj": nn.Linear(width, n * self.head, bias=False) for k, n in sizes.items()}
        )
        self.self_attn["o_proj"] = nn.Linear(self.heads * self.head, width, bias=False)
        self.mlp = nn.ModuleDict(
            {f"{name}_proj": nn.Linear(width, inner, bias=False) for name in ("gate", "up")}
        )
        self.mlp["down_proj"] = nn.Linear(inner, width, bias=False)
        self.input_layernorm = nn.RMSNorm(width, self.eps)
        self.post_attention_layernorm = nn.RMSNorm(width, self.eps)

    def forward(
        self, h_TD: Tensor, turn: tuple[Tensor, Tensor], lengths: Lengths, causal: bool
    ) -> Tensor:
        """Return the next states."""
        x_TD = self.input_layernorm(h_TD)
        q_TAH = rotate(self.self_attn["q_proj"](x_TD).unflatten(-1, (self.heads, self.head)), turn)
        k_TKH = rotate(
            self.self_attn["k_proj"](x_TD).unflatten(-1, (self.kv_heads, self.head)), turn
        )
        v_TKH = self.self_attn["v_proj"](x_TD).unflatten(-1, (self.kv_heads, self.head))
        group = self.heads // self.kv_heads
        k_TAH, v_TAH = (x.repeat_interleave(group, 1) for x in (k_TKH, v_TKH))
        o_TAH = attend_all(q_TAH.to(v_TAH.dtype), k_TAH.to(v_TAH.dtype), v_TAH, lengths, causal)
        h_TD = h_TD + self.self_attn["o_proj"](o_TAH.flatten(1))
        x_TD = self.post_attention_layernorm(h_TD)
        inner_TF = functional.silu(self.mlp["gate_proj"](x_TD)) * self.mlp["up_proj"](x_TD)
        out_TD: Tensor = h_TD + self.mlp["down_proj"](inner_TF)
        return out_TD


def attend_all(
    q_TAH: Tensor, k_TAH: Tensor, v_TAH: Tensor, lengths: Lengths, causal: bool
) -> Tensor:
    """Return the attention outputs of texts that lie back to back: on a GPU by one kernel."""
    if isinstance(lengths, Spans) and q_TAH.device.type == "cuda":
        from torch.nn.attention.varlen import varlen_attn

        if causal:
            raise SystemExit("on a GPU, attention goes in both directions")
        starts_N, longest = lengths
        out: Any = varlen_attn(q_TAH, k_TAH, v_TAH, starts_N, starts_N, longest, longest)
        out_TAH: Tensor = out
        return out_TAH
    if isinstance(lengths, Spans):
        lengths = [n for n in lengths.starts_N.diff().tolist() if n]
    texts = zip(*(x.split(list(lengths)) for x in (q_TAH, k_TAH, v_TAH)), strict=True)
    return torch.cat([attend(q, k, v, causal) for q, k, v in texts])


def attend(q_LAH: Tensor, k_LAH: Tensor, v_LAH: Tensor, causal: bool) -> Tensor:
    """Return one text's attention outputs.

    Three plain products: forward and backward take a third of the time of torch's fused kernel on a
    CPU in bfloat16 with some hundred tokens.
    """
    q_ALH, k_ALH, v_ALH = (x.transpose(0, 1).contiguous() for x in (q_LAH, k_LAH, v_LAH))
    score_ALL = torch.bmm(q_ALH, k_ALH.transpose(1, 2)) * q_ALH.shape[-1] ** -0.5
    if causal:
        later_LL = torch.ones(score_ALL.shape[1:], dtype=torch.bool).triu(1)
        score_ALL = score_ALL.masked_fill(later_LL, -torch.inf)
    return torch.bmm(score_ALL.softmax(-1), v_ALH).transpose(0, 1)


def rotate(x_TAH: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Turn pairs of coordinates by the token's position."""
    cos_TH, sin_TH = turn
    left, right = x_TAH.chunk(2, -1)
    return x_TAH * cos_TH[:, None] + torch.cat([-right, left], -1) * sin_TH[:, None]


class Student(nn.Module):
    """A pruned language model, mean pooling and a linear projection to the teacher's width."""

    def __init__(self, config: dict[str, Any], width: int, causal: bool) -> None:
        super().__init__()
        self.config, self.causal = config, causal
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = nn.RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.projection = nn.Linear(config["hidden_size"], width)
        angle_LH = turns(config["rope_parameters"]["rope_theta"], config["head_dim"], 2048)
        self.cos_LH, self.sin_LH = angle_LH.cos(), angle_LH.sin()

    @classmethod
    def load(cls, folder: Path, layers: int, width: int, causal: bool) -> Student:
        """Open the first layers of a folder of prune.py; the projection is random."""
        config = json.loads((folder / "config.json").read_text())
        student = cls({**config, "num_hidden_layers": layers}, width, causal)
        stored = load_file(folder / "model.safetensors")
        weights = {name.removeprefix("model."): weight for name, weight in stored.items()}
        known = student.state_dict()
        student.load_state_dict(
            {**known, **{name: w.float() for name, w in weights.items() if name in known}}
        )
        return student

    def states(self, ids_T: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the last layer's normed states (T, D) of texts that lie back to back."""
        *_, h_TD = self.inner_states(ids_T, lengths)
        normed_TD: Tensor = self.norm(h_TD)
        return normed_TD

    def inner_states(self, ids_T: Tensor, lengths: Sequence[int]) -> Iterator[Tensor]:
        """Yield the states (T, D) after each layer."""
        h_TD = self.embed_tokens(ids_T)
        position_T = torch.cat([torch.arange(n) for n in lengths])
        turn = (self.cos_LH[position_T].to(h_TD.dtype), self.sin_LH[position_T].to(h_TD.dtype))
        for layer in self.layers:
            h_TD = layer(h_TD, turn, lengths, self.causal)
            yield h_TD

    def forward(self, ids_T: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return unit vectors (n, width) in float32."""
        mean_ND = pool(self.states(ids_T, lengths), lengths)
        weight_ED, bias_E = (p.float() for p in self.projection.parameters())
        return functional.normalize(functional.linear(mean_ND, weight_ED, bias_E))


def pool(h_TD: Tensor, lengths: Sequence[int], skip: int = 0) -> Tensor:
    """Return each text's mean state in float32, without its first `skip` tokens."""
    parts = h_TD.float().split(list(lengths))
    return torch.stack([part[skip if len(part) > skip else 0 :].mean(0) for part in parts])


def turns(theta: float, head: int, length: int) -> Tensor:
    """Return the rotary angles (L, H)."""
    rate_H = theta ** -(torch.arange(0, head, 2).float() / head)
    return torch.outer(torch.arange(length).float(), rate_H).repeat(1, 2)


class Tokens:
    """A folder's tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, cut at `MAX_TOKENS`."""
        ids: list[list[int]] = self.tokenizer(
            list(texts), truncation=True, max_length=MAX_TOKENS, add_special_tokens=False
        )["input_ids"]
        return ids


def chunks(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Group texts by length into chunks of at most `limit` tokens, the longest first."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    groups: list[list[int]] = []
    size = limit
    for i in order:
        if size + lengths[i] > limit:
            groups.append([])
            size = 0
        groups[-1].append(i)
        size += lengths[i]
    return groups


@torch.inference_mode()
def encode(student: Student, ids: Sequence[Sequence[int]], limit: int = 1024) -> Tensor:
    """Return the vectors of tokenised texts."""
    vectors_NE = torch.empty(len(ids), student.projection.out_features)
    for group in chunks([len(x) for x in ids], limit):
        flat = torch.tensor([token for i in group for token in ids[i]])
        vectors_NE[group] = student(flat, [len(ids[i]) for i in group])
    return vectors_NE

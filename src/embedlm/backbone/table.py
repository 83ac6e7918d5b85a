"""A table of embeddings without a network: a row for each token of a vocabulary.

Two libraries write such folders: model2vec (`embeddings`, maybe with `mapping` and `weights`), and
sentence-transformers (StaticEmbedding: `embedding.weight`; SparseStaticEmbedding: `weight`, one
number a token, or a JSON file of them by token). Beside the weights lies a tokenizer.json. A table
is written as model2vec does, which all of them open.

Shapes: V tokens, D width of a row, E rows that are stored where several tokens share one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from embedlm.backbone.config import TABLE_TYPE, stored_dtype
from embedlm.backbone.stored import expanded_tensors, is_stored_by_row
from embedlm.backbone.tensors import read_tensors
from embedlm.backbone.tokenizer import load_tokenizer
from embedlm.errors import ModelError
from embedlm.jobs.json_files import inner_path, optional_json, read_object, write_json

__all__ = ["Table", "is_table", "load_table", "own_dtype", "table_of"]

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_NAMES = {
    "embedding.weight": "sentence-transformers' StaticEmbedding",
    "embeddings": "model2vec",
    "weight": "sentence-transformers' SparseStaticEmbedding",
}
"""What the table is called in a file of weights, and by whom."""
_TOKENIZER = "tokenizer.json"
_TOKENIZER_SETTINGS = "tokenizer_config.json"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_HALF = (torch.float16, torch.bfloat16)
_UNFOLDED = ("vocabulary_quantization", "quantization_config", "path")
"""Fields of a config.json that say how rows are stored; what is loaded has a row a token."""
_BY_TOKEN = "idf.json"


class _Config(PretrainedConfig):
    model_type = TABLE_TYPE


class Table(nn.Module):
    """A table in the place of a network: it has no layers, and gives a token its row."""

    def __init__(
        self, rows_VD: Tensor, fields: Mapping[str, Any] | None = None, *, weighs: bool = False
    ) -> None:
        """Take the rows.

        Args:
            rows_VD: of all tokens.
            fields: what else the config.json of their folder says of them.
            weighs: whether a row is the weight of its token (SparseStaticEmbedding).
        """
        super().__init__()
        self.fields, self.weighs = dict(fields or {}), weighs
        count, width = rows_VD.shape
        facts: Any = {"vocab_size": count, "hidden_size": width, "dtype": rows_VD.dtype}
        self.config = _Config(**facts)
        self.table = nn.Embedding(count, width, _weight=rows_VD)
        self.eval().requires_grad_(False)

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the table."""
        return self.table

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return each token's row."""
        rows: Tensor = self.table(input_ids)
        return rows

    def save_pretrained(self, folder: Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write config.json and model.safetensors."""
        rows_VD = (self.state_dict() if state_dict is None else state_dict)["table.weight"]
        rows_VD = rows_VD.detach().contiguous().cpu()
        folder.mkdir(parents=True, exist_ok=True)
        stored = {"weight": rows_VD[:, 0].clone()} if self.weighs else {"embeddings": rows_VD}
        save_file(stored, folder / _WEIGHTS[0], {"format": "pt"})
        config = {key: value for key, value in self.fields.items() if key not in _UNFOLDED}
        if not self.weighs:
            config |= {
                "model_type": TABLE_TYPE,
                "architectures": ["StaticModel"],
                "hidden_dim": rows_VD.shape[1],
                "embedding_dtype": str(rows_VD.dtype).removeprefix("torch."),
            }
        write_json(folder / "config.json", config, indent=2)


def table_of(network: Any) -> Table:
    """Return the table of input embeddings of any network; its own where it is no more than one."""
    if isinstance(network, Table):
        return network
    table = network.get_input_embeddings()
    with torch.no_grad():  # looked up, since some architectures scale their rows
        ids = torch.arange(table.weight.shape[0], device=table.weight.device)
        return Table(torch.cat([table(part).cpu() for part in ids.split(1 << 14)]))


def is_table(source: str) -> bool:
    """Tell whether a folder holds a table, its tokenizer and no network."""
    folder = Path(source)
    if not (folder / _TOKENIZER).is_file():
        return False
    fields = optional_json(folder / "config.json")
    if fields.get("model_type") is not None:
        return bool(fields["model_type"] == TABLE_TYPE)
    return "architectures" not in fields and any((folder / name).is_file() for name in _FILES)


_FILES = (*_WEIGHTS, _BY_TOKEN)


def load_table(source: str, dtype: str | torch.dtype) -> tuple[Table, Any]:
    """Return the table of a folder, and its tokenizer.

    Args:
        source: the folder.
        dtype: of the rows; auto: as they are stored.

    Raises:
        ModelError: files that are missing, damaged or do not fit each other.
    """
    folder = Path(source)
    fields = optional_json(folder / "config.json")
    rows_VD, weighs = _rows(folder, fields)
    if dtype != "auto":
        rows_VD = rows_VD.to(dtype)
    table = Table(rows_VD, fields, weighs=weighs)
    if weighs:  # as transformers builds it, with what its settings say
        return table, load_tokenizer(source, table.config)
    return table, _tokenizer(folder)


def own_dtype(source: str) -> str | None:
    """Return the numbers in which a model's weights are stored, if of 16 bits; None otherwise."""
    if not is_table(source):
        return stored_dtype(source)
    folder = Path(source)
    fields = optional_json(folder / "config.json")
    if is_stored_by_row(source, fields) or _weights_by_token(folder, fields) is not None:
        return None
    tensors = _tensors(folder, fields)  # mapped into memory, and not read
    rows = tensors[_name(tensors)]
    half = rows.dtype in _HALF and "weights" not in tensors
    return str(rows.dtype).removeprefix("torch.") if half else None


def _core(folder: Path) -> Any:
    file = folder / _TOKENIZER
    try:
        core = Tokenizer.from_file(str(file))
    except Exception as error:  # the tokenizers library raises bare Exceptions
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{file} cannot be read (corrupt?): {reason}") from error
    core.no_padding()
    core.no_truncation()
    return core


def _tokenizer(folder: Path) -> Any:
    """Return the tokenizer as its file has it; settings do no more than name special tokens."""
    core = _core(folder)
    names = optional_json(folder / _TOKENIZER_SETTINGS)
    known = {token.content for token in core.get_added_tokens_decoder().values()}
    tokens = {key: _content(names.get(key)) for key in (*_SPECIAL, "mask_token")}
    named: dict[str, Any] = {key: token for key, token in tokens.items() if token in known}
    return PreTrainedTokenizerFast(tokenizer_object=core, **named)


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


# -- rows --------------------------------------------------------------------------------------


def _rows(folder: Path, fields: Mapping[str, Any]) -> tuple[Tensor, bool]:
    """Return the rows, and whether each is the weight of its token."""
    by_token = _weights_by_token(folder, fields)
    if by_token is not None:
        return _spread(by_token, _core(folder)), True
    tensors = _tensors(folder, fields)
    name = _name(tensors)
    rows, weighs = tensors[name], name == "weight"
    rows = rows[:, None] if weighs and rows.ndim == 1 else rows
    if rows.ndim != 2 or 0 in rows.shape or (weighs and rows.shape[1] != 1):
        raise ModelError(f"{name} in {str(folder)!r} has the shape {tuple(rows.shape)}")
    rows = rows if rows.dtype in _HALF else rows.float()
    rows = _unfolded(folder, rows, tensors.get("mapping"), tensors.get("weights"))
    return rows.contiguous(), weighs


def _tensors(folder: Path, fields: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what a file of weights holds.

    Raises:
        ModelError: no table, or more than one.
    """
    if is_stored_by_row(str(folder), fields):
        tensors = expanded_tensors(str(folder), torch.float32)
    else:
        tensors = read_tensors(folder, *_WEIGHTS)
    name = _name(tensors)
    more = set(tensors) - {name, *(("mapping", "weights") if name == "embeddings" else ())}
    if name is None or more:
        found = ", ".join(sorted(more)) or "nothing"
        raise ModelError(
            f"the weights in {str(folder)!r} hold {found}; a table of embeddings is one of "
            f"{', '.join(_NAMES)}, and with embeddings there may be mapping and weights"
        )
    return tensors


def _name(tensors: Mapping[str, Tensor]) -> Any:
    """Return what the table is called among the tensors of a file."""
    return next((name for name in _NAMES if name in tensors), None)


def _unfolded(
    folder: Path, rows_ED: Tensor, mapping_V: Tensor | None, weights_V: Tensor | None
) -> Tensor:
    """Return a row a token: tokens may share rows, and have a weight each (model2vec)."""
    if mapping_V is not None:
        fits = mapping_V.ndim == 1 and not mapping_V.is_floating_point() and len(mapping_V)
        if not fits or int(mapping_V.min()) < 0 or int(mapping_V.max()) >= len(rows_ED):
            raise ModelError(
                f"mapping in {str(folder)!r} does not name a row of embeddings for each token "
                f"(there are {len(rows_ED)})"
            )
        rows_ED = rows_ED[mapping_V.long()]
    if weights_V is None:
        return rows_ED
    if weights_V.shape != rows_ED.shape[:1]:
        raise ModelError(
            f"weights in {str(folder)!r} has the shape {tuple(weights_V.shape)}, and there are "
            f"{len(rows_ED)} tokens; the two are not of one model"
        )
    return rows_ED.float() * weights_V.float()[:, None]


def _weights_by_token(folder: Path, fields: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the weights that a JSON file gives tokens; None: they stand in a file of tensors.

    Raises:
        ModelError: the file is missing or damaged, or lies outside the folder.
    """
    named, file = fields.get("path"), folder / _BY_TOKEN
    if isinstance(named, str) and named.endswith(".json"):
        file = inner_path(folder, named, folder / "config.json")
    elif any((folder / name).is_file() for name in _WEIGHTS) or not file.is_file():
        return None
    weights = read_object(file)
    for token, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ModelError(f"{file}: the weight of {token!r} is {weight!r}; allowed is a number")
    return weights


def _spread(by_token: Mapping[str, float], core: Any) -> Tensor:
    """Return weights by token as a table of one column; tokens that have none weigh 0."""
    unknown = getattr(core.model, "unk_token", None)
    fallback = None if unknown is None else core.token_to_id(unknown)
    rows_V1 = torch.zeros(core.get_vocab_size(with_added_tokens=True), 1)
    for token, weight in by_token.items():
        index = core.token_to_id(token)
        index = fallback if index is None else index
        if index is not None:
            rows_V1[index] = float(weight)
    return rows_V1

"""Linear layers after pooling, as sentence-transformers' Dense modules hold them.

y = a(W x + b), where the activation a is named in the layer's config; several follow each other.
They are found by a folder's modules.json, else by the folders' names (`2_Dense`, `3_Dense`).

Shapes: B rows, D width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save_file
from torch import Tensor, nn

from embedlm.backbone.tensors import read_tensors
from embedlm.errors import ModelError, UnsupportedError
from embedlm.jobs.json_files import read_json

__all__ = ["Projection", "ProjectionLayer", "load_projection", "save_projection"]

_FILES = ("model.safetensors", "pytorch_model.bin")
ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.LeakyReLU, nn.ELU)
}
"""Activations by the last part of the name in a config, `torch.nn.modules.activation.Tanh`."""


class ProjectionLayer(nn.Module):
    """One linear layer with its activation."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        activation: str = "Tanh",
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation = ACTIVATIONS[activation]()
        self.use_residual = residual
        if residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return a(W x + b), with x (or its own projection) added where the config says so."""
        out_BD: Tensor = self.activation(self.linear(x_BD))
        if not self.use_residual:
            return out_BD
        own = hasattr(self, "residual")
        return out_BD + (self.residual(x_BD) if own else x_BD)

    def config(self) -> dict[str, Any]:
        """Return the layer's config as sentence-transformers writes it."""
        kind = type(self.activation)
        config = {
            "in_features": self.linear.in_features,
            "out_features": self.linear.out_features,
            "bias": self.linear.bias is not None,
            "activation_function": f"{kind.__module__}.{kind.__name__}",
        }
        return {**config, "use_residual": True} if self.use_residual else config


class Projection(nn.Module):
    """The layers between pooling and the vector that is handed out."""

    def __init__(self, layers: Sequence[ProjectionLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    @property
    def out_features(self) -> int:
        """Width of what comes out."""
        return self.parts()[-1].linear.out_features

    def parts(self) -> list[ProjectionLayer]:
        """Return the layers in order."""
        return cast(list[ProjectionLayer], list(self.layers))

    def forward(self, v_BD: Tensor) -> Tensor:
        """Return the pooled vectors after all layers, in float32."""
        for layer in self.layers:
            v_BD = layer(v_BD)
        return v_BD


def load_projection(folder: Path, width: int, *, tokens: bool = False) -> Projection | None:
    """Return the Dense modules of a model folder; None where it has none.

    Args:
        folder: of the model.
        width: of the vectors that go in.
        tokens: whether these are token states, and not what comes out of the pooling.

    Raises:
        ModelError: files that are missing, cannot be read or do not fit.
        UnsupportedError: an activation or an input that is not known here.
    """
    places = _dense_folders(folder)
    if not places:
        return None
    projection = Projection([_read(place, tokens) for place in places])
    for place, layer in zip(places, projection.parts(), strict=True):
        if layer.linear.in_features != width:
            raise ModelError(
                f"{str(place)!r} takes vectors of width {layer.linear.in_features}, but what comes "
                f"before it gives {width}; the folder's parts are not of one model"
            )
        width = layer.linear.out_features
    return projection.float().eval().requires_grad_(False)


def _dense_folders(folder: Path) -> list[Path]:
    modules = folder / "modules.json"
    if not modules.is_file():
        found = [path for path in folder.glob("*_Dense") if (path / "config.json").is_file()]
        return sorted(found, key=lambda path: (len(path.name), path.name))
    entries = read_json(modules)
    return [folder / entry["path"] for entry in entries if entry["type"].endswith(".Dense")]


def _read(folder: Path, tokens: bool) -> ProjectionLayer:
    config = read_json(folder / "config.json")
    given = config.get("module_input_name", "sentence_embedding")
    if given != "sentence_embedding" and not (tokens and given == "token_embeddings"):
        raise UnsupportedError(
            f"{str(folder)!r} projects {given!r}; only what comes out of the "
            "pooling (sentence_embedding) is projected"
        )
    layer = ProjectionLayer(
        int(config["in_features"]),
        int(config["out_features"]),
        bias=bool(config.get("bias", True)),
        activation=_activation(config, folder),
        residual=bool(config.get("use_residual", False)),
    )
    try:
        layer.load_state_dict(_weights(folder))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"the weights in {str(folder)!r} do not fit: {reason[:300]}") from error
    return layer


def _activation(config: Mapping[str, Any], folder: Path) -> str:
    path = str(config.get("activation_function") or "torch.nn.Tanh")
    name = path.rsplit(".", 1)[-1]
    if name not in ACTIVATIONS or not path.startswith("torch."):
        raise UnsupportedError(
            f"{str(folder)!r} has the activation {path!r}; known: {', '.join(ACTIVATIONS)}"
        )
    return name


def _weights(folder: Path) -> dict[str, Tensor]:
    state = read_tensors(folder, *_FILES)
    if not state:
        raise ModelError(
            f"the layer in {str(folder)!r} has no weights; expected is {' or '.join(_FILES)}"
        )
    return state


def save_projection(projection: Projection, folder: Path) -> list[str]:
    """Write every layer as a Dense module below a model folder and return the folders' names."""
    names = []
    for index, layer in enumerate(projection.parts(), start=2):
        place = folder / f"{index}_Dense"
        place.mkdir()
        text = json.dumps(layer.config(), indent=2) + "\n"
        (place / "config.json").write_text(text, encoding="utf-8")
        weights = {name: value.contiguous().cpu() for name, value in layer.state_dict().items()}
        save_file(weights, place / "model.safetensors")
        names.append(place.name)
    return names

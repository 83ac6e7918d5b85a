"""Layers after pooling, as sentence-transformers' Dense and LayerNorm modules hold them.

y = a(W x + b), where the activation a is named in the layer's config; or x with its mean taken out,
divided by its deviation. Several follow each other. They are found by a folder's modules.json, else
by the folders' names (`2_Dense`, `3_LayerNorm`).

Shapes: B rows, D width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from safetensors.torch import save_file
from torch import Tensor, nn

from embedlm.backbone.tensors import read_tensors
from embedlm.errors import ModelError, UnsupportedError
from embedlm.jobs.json_files import inner_path, read_json, read_object

__all__ = [
    "LAYERS",
    "NormLayer",
    "Projection",
    "ProjectionLayer",
    "load_projection",
    "projected_width",
    "save_layer",
    "save_projection",
]

_FILES = ("model.safetensors", "pytorch_model.bin")
ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        *(nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.LeakyReLU, nn.ELU),
        *(nn.CELU, nn.SELU, nn.ReLU6, nn.Mish, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid),
        *(nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.LogSigmoid, nn.Softplus, nn.Softsign),
        *(nn.PReLU, nn.RReLU),
    )
}
"""Activations that change each number by itself, made without arguments."""
_PATHS = {
    path: name
    for name, kind in ACTIVATIONS.items()
    for path in (f"torch.nn.{name}", f"torch.nn.modules.{name}", f"{kind.__module__}.{name}")
}
"""Their names by what a config calls them, `torch.nn.modules.activation.Tanh`."""


class ProjectionLayer(nn.Module):
    """One linear layer with its activation."""

    kind: ClassVar[str] = "Dense"
    """The name of its module."""

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
        # Named as there, since PReLU has a weight of its own.
        self.activation_function = ACTIVATIONS[activation]()
        self.use_residual = residual
        if residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return a(W x + b), with x (or its own projection) added where the config says so."""
        out_BD: Tensor = self.activation_function(self.linear(x_BD))
        if not self.use_residual:
            return out_BD
        own = hasattr(self, "residual")
        return out_BD + (self.residual(x_BD) if own else x_BD)

    @property
    def out_features(self) -> int:
        """Width of what comes out."""
        return self.linear.out_features

    @property
    def biased(self) -> bool:
        """Whether it adds numbers of its own."""
        return self.linear.bias is not None

    def config(self) -> dict[str, Any]:
        """Return the layer's config as sentence-transformers writes it."""
        kind = type(self.activation_function)
        config = {
            "in_features": self.linear.in_features,
            "out_features": self.linear.out_features,
            "bias": self.linear.bias is not None,
            "activation_function": f"{kind.__module__}.{kind.__name__}",
        }
        return {**config, "use_residual": True} if self.use_residual else config


class NormLayer(nn.Module):
    """A layer norm of vectors."""

    kind: ClassVar[str] = "LayerNorm"
    biased: ClassVar[bool] = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_features = width
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return the vectors with mean 0 and deviation 1, then scaled and moved."""
        out_BD: Tensor = self.norm(x_BD)
        return out_BD

    def config(self) -> dict[str, Any]:
        """Return the layer's config as sentence-transformers writes it."""
        return {"dimension": self.out_features}


Layer = ProjectionLayer | NormLayer
LayerT = TypeVar("LayerT", bound=nn.Module)
LAYERS = (ProjectionLayer.kind, NormLayer.kind)
"""The names of their modules."""


class Projection(nn.Module):
    """The layers between pooling and the vector that is handed out."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    @property
    def out_features(self) -> int:
        """Width of what comes out."""
        return self.parts()[-1].out_features

    def parts(self) -> list[Layer]:
        """Return the layers in order."""
        return cast(list[Layer], list(self.layers))

    def forward(self, v_BD: Tensor) -> Tensor:
        """Return the pooled vectors after all layers, in float32."""
        for layer in self.layers:
            v_BD = layer(v_BD)
        return v_BD


def load_projection(
    folder: Path,
    width: int,
    *,
    tokens: bool = False,
    places: Sequence[tuple[str, Path]] | None = None,
) -> Projection | None:
    """Return the Dense and LayerNorm modules of a model folder; None where it has none.

    Args:
        folder: of the model.
        width: of the vectors that go in.
        tokens: whether these are token states, and not what comes out of the pooling.
        places: kind and folder of each; None: those that the folder's files tell.

    Raises:
        ModelError: files that are missing, cannot be read or do not fit.
        UnsupportedError: an activation or an input that is not known here.
    """
    places = _layer_folders(folder) if places is None else places
    places = [(kind, place) for kind, place in places if kind in LAYERS]
    if not places:
        return None
    layers: list[Layer] = []
    for kind, place in places:
        layers.append(
            _read(place, width, tokens) if kind == LAYERS[0] else _read_norm(place, width)
        )
        width = layers[-1].out_features
    return Projection(layers).float().eval().requires_grad_(False)


def projected_width(folder: Path) -> int | None:
    """Return the width that the layers of a folder give; None where it has none.

    Only their configs are read.

    Raises:
        ModelError: a file that cannot be read.
    """
    places = [(kind, place) for kind, place in _layer_folders(folder) if kind in LAYERS]
    if not places:
        return None
    kind, place = places[-1]
    file = place / "config.json"
    return _width(read_object(file), "out_features" if kind == LAYERS[0] else "dimension", file)


def _layer_folders(folder: Path) -> list[tuple[str, Path]]:
    """Return kind and folder of each module among which the layers are, in order."""
    modules = folder / "modules.json"
    if not modules.is_file():
        found = [path for kind in LAYERS for path in folder.glob(f"*_{kind}")]
        found = [path for path in found if (path / "config.json").is_file()]
        by_number = sorted(found, key=lambda path: (path.name.find("_"), path.name))
        return [(path.name.partition("_")[2], path) for path in by_number]
    entries = read_json(modules)
    fit = isinstance(entries, list) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("type", "path"))
        for entry in entries
    )
    if not fit:
        raise ModelError(f'{modules} is not a list of modules, each with "type" and "path"')
    kinds = [entry["type"].rsplit(".", 1)[-1] for entry in entries]
    return [
        (kind, inner_path(folder, entry["path"], modules))
        for kind, entry in zip(kinds, entries, strict=True)
    ]


def _read_norm(folder: Path, width: int) -> NormLayer:
    file = folder / "config.json"
    own = _width(read_object(file), "dimension", file)
    if own != width:
        raise ModelError(_not_of_one_model(folder, own, width))
    return _filled(NormLayer(width), _weights(folder), folder)


def _not_of_one_model(folder: Path, own: int, width: int) -> str:
    return (
        f"{str(folder)!r} takes vectors of width {own}, but what comes before it gives {width}; "
        "the folder's parts are not of one model"
    )


def _filled(layer: LayerT, state: dict[str, Tensor], folder: Path) -> LayerT:
    """Return a layer with its weights."""
    try:
        layer.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"the weights in {str(folder)!r} do not fit: {reason[:300]}") from error
    return layer


def _read(folder: Path, width: int, tokens: bool) -> ProjectionLayer:
    file = folder / "config.json"
    config = read_object(file)
    given = config.get("module_input_name", "sentence_embedding")
    if given != "sentence_embedding" and not (tokens and given == "token_embeddings"):
        raise UnsupportedError(
            f"{str(folder)!r} projects {given!r}; only what comes out of the "
            "pooling (sentence_embedding) is projected"
        )
    widths = [_width(config, key, file) for key in ("in_features", "out_features")]
    if widths[0] != width:
        raise ModelError(_not_of_one_model(folder, widths[0], width))
    state = _weights(folder)
    shape = tuple(state["linear.weight"].shape) if "linear.weight" in state else None
    if shape != (widths[1], width):  # checked before a layer of a damaged width takes the memory
        raise ModelError(
            f"{file} says in_features {width}, out_features {widths[1]}, and the weights beside "
            f"it are {shape}; the two must fit"
        )
    layer = ProjectionLayer(
        *widths,
        bias=_flag(config, "bias", file, default=True),
        activation=_activation(config, folder),
        residual=_flag(config, "use_residual", file, default=False),
    )
    return _filled(layer, state, folder)


def _width(config: Mapping[str, Any], key: str, file: Path) -> int:
    width = config.get(key)
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise ModelError(f"{file}: {key} is {width!r}; allowed is a whole number above 0")
    return width


def _flag(config: Mapping[str, Any], key: str, file: Path, *, default: bool) -> bool:
    flag = config.get(key, default)
    if not isinstance(flag, bool):
        raise ModelError(f"{file}: {key} is {flag!r}; allowed are true and false")
    return flag


def _activation(config: Mapping[str, Any], folder: Path) -> str:
    path = config.get("activation_function", "torch.nn.Tanh")
    if not isinstance(path, str) or path not in _PATHS:
        raise UnsupportedError(
            f"{folder / 'config.json'}: activation_function is {path!r}; known, of torch.nn: "
            f"{', '.join(ACTIVATIONS)}"
        )
    return _PATHS[path]


def _weights(folder: Path) -> dict[str, Tensor]:
    state = read_tensors(folder, *_FILES)
    if not state:
        raise ModelError(
            f"the layer in {str(folder)!r} has no weights; expected is {' or '.join(_FILES)}"
        )
    return state


def save_projection(projection: Projection, folder: Path) -> list[str]:
    """Write every layer as a module below a model folder and return the folders' names."""
    names = []
    for index, layer in enumerate(projection.parts(), start=2):
        place = folder / f"{index}_{layer.kind}"
        place.mkdir()
        save_layer(layer, place)
        names.append(place.name)
    return names


def save_layer(layer: Layer, place: Path) -> None:
    """Write a layer as a module, into a folder of its own."""
    text = json.dumps(layer.config(), indent=2) + "\n"
    (place / "config.json").write_text(text, encoding="utf-8")
    weights = {name: value.contiguous().cpu() for name, value in layer.state_dict().items()}
    save_file(weights, place / "model.safetensors")

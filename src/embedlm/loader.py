"""Opening a model: which files, which recipe, on which device."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from embedlm.backbone import Backbone, gguf_folder, load_backbone
from embedlm.backbone.adapter_files import adapter_folder, own_adapters, split_adapters
from embedlm.backbone.builtin import BUILTIN
from embedlm.backbone.gguf_model import pools_last
from embedlm.backbone.quantised import KINDS
from embedlm.embedder import Embedder
from embedlm.encode.executor import Executor
from embedlm.encode.roles import routed
from embedlm.errors import ModelError, UnsupportedError
from embedlm.jobs.names import real_path
from embedlm.persistence import (
    check_width,
    derive_recipe,
    layout_folder,
    own_recipe,
    recognise,
)
from embedlm.persistence.hub import (
    check_model_kwargs,
    downloaded,
    network_place,
    whole_folder,
)
from embedlm.persistence.layouts import asked_dtype
from embedlm.persistence.markers import keep_markers
from embedlm.persistence.published import recipe_of_checkpoint
from embedlm.persistence.read import check_widths, route_recipe
from embedlm.persistence.router import read_router
from embedlm.prompt.render import Request
from embedlm.prompt.segments import SEGMENT_ID
from embedlm.readout import Parts, Readout
from embedlm.readout.frequency import Statistics
from embedlm.readout.heads import make_heads
from embedlm.readout.quantized import Ranges
from embedlm.schema.arguments import check_arguments
from embedlm.schema.recipe import Recipe

__all__ = ["fitted_tokens", "load", "load_readout", "load_to_train", "model_source"]

log = logging.getLogger(__name__)


def load(
    model: str | Path | None = None,
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    *,
    device: Any = None,
    dtype: Any = "auto",
    adapters: Sequence[str] | None = (),
    merge: bool | None = None,
    max_length: int | dict[str, int] | None = None,
    attn: str = "auto",
    generator: Any = None,
    lm_head: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> Embedder:
    """Load a model and a recipe.

    Args:
        model: a folder or hub id; None is a built-in model (no network): "builtin", an embedding
            model, or with a recipe "builtin-base", a language model.
        recipe: a name, path, mapping or `Recipe`; None takes the one saved with the model or
            derived from its files, else plain-mean.
        device: None chooses CUDA, MPS or CPU.
        dtype: "auto" keeps float32 checkpoints and runs half-precision ones in bfloat16 where fast;
            "int8" runs the layers' products in 8-bit integers, "fp8" in 8-bit floats.
        adapters: adapter folders or hub ids, applied in order; a relative one is also looked for
            below the model's folder and beside it. A model that is itself an adapter is put on its
            base.
        merge: merge the adapters into the weights, or keep them switchable by `adapter=` in
            `encode`; None takes the recipe's.
        max_length: in tokens, for all roles or by role.
        attn: auto, packed, sdpa or eager.
        generator: writes the texts that a recipe such as geneol wants: a model folder, an endpoint
            "http://host/v1#model", or None for the model itself.
        lm_head: load the language-model head too, where the recipe does not read it: for
            `encode(heads=["sparse"])`, or a `Writer`.
        revision: branch, tag or commit of a hub model.
        token: of the hub; None or True takes the one that was logged in with, False none.
        cache_dir: where models of the hub are kept.
        model_kwargs: further arguments of transformers' `from_pretrained`, e.g. variant.

    Raises:
        InputError: an argument that cannot be used.
        ModelError: nothing that can be loaded is there.
        RecipeError: no such recipe.
        UnsupportedError: the model cannot do what the recipe asks.
    """
    hub: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir}
    given = {"model": model, "device": device, "dtype": dtype, "adapters": adapters}
    given |= {"merge": merge, "max_length": max_length, "attn": attn, "generator": generator}
    check_arguments("load", **given, lm_head=lm_head, model_kwargs=model_kwargs, **hub)
    check_model_kwargs(model_kwargs)
    name = str(model) if model is not None else "builtin" if recipe is None else "builtin-base"
    source = model_source(name, **hub)
    options: dict[str, Any] = {"device": device, "dtype": dtype, "attn": attn}
    options |= {"max_length": max_length, "model_kwargs": model_kwargs}
    if recipe is None and read_router(layout_folder(source)) is not None:
        refused = {"adapters": adapters, "merge": merge, "generator": generator}
        return _routed(name, source, refused, {**options, "lm_head": lm_head or "if_cheap"})
    known = _own_recipe(name, source) if recipe is None else _asked_for(recipe, source)
    chosen = known or Recipe.load("plain-mean")
    generator = _writer(generator, token=token, cache_dir=cache_dir)
    # A model that writes the variants of texts itself needs its language-model head for that.
    writes = chosen.transform is not None and generator is None
    readout = load_readout(
        source,
        chosen,
        trained=recipe is None and chosen != Recipe.load("plain-mean"),
        adapters=adapters or (),
        merge=merge,
        lm_head=writes or lm_head or "if_cheap",
        hub={"token": token, "cache_dir": cache_dir},
        **options,
    )
    if recipe is None:
        check_width(source, readout.backbone.dim)
    readout, ranges = (readout, None) if adapters else _fitted(readout, source)
    executor = Executor(readout.backbone)
    embedder = Embedder(readout, executor, name=name, generator=generator, ranges=ranges)
    return _told(embedder, source, has_recipe=known is not None)


def _writer(generator: Any, **hub: Any) -> Any:
    """Return what writes; a model of the hub is downloaded as the one that is loaded is."""
    named = isinstance(generator, str | Path) and not str(generator).startswith("http")
    given = any(value is not None for value in hub.values())
    return model_source(str(generator), **hub) if named and given else generator


def _routed(
    name: str, source: str, refused: Mapping[str, Any], options: Mapping[str, Any]
) -> Embedder:
    """Load a folder whose roles are read by modules of their own.

    Args:
        name: as it was given.
        source: folder or hub id.
        refused: arguments of `load` that are for one network.
        options: the others, of `load_readout`.

    Raises:
        UnsupportedError: one of those that are for one network was given, or the routes give
            vectors that cannot be compared.
    """
    given = [key for key, value in refused.items() if value]
    if given:
        raise routed(name, f"{given[0]} is for a model of one; leave it out")
    router = read_router(whole_folder(source))
    assert router is not None
    found: dict[str, Embedder] = {}
    dtype = options["dtype"]
    for route, modules in router.routes.items():
        recipe, place = route_recipe(router, route, source), str(modules[0][1])
        kept = {**options, "max_length": router.length(route, options["max_length"])}
        if recipe.backbone.kind == "static":  # a table has no head, and no products in 8 bits
            kept |= {"lm_head": False, "dtype": "auto" if dtype in KINDS else dtype}
        alike = [
            one
            for one in found.values()
            if one.backbone.name == place and one.recipe.backbone == recipe.backbone
        ]
        shared = alike[0].backbone if alike else None
        readout = load_readout(place, recipe, trained=True, backbone=shared, places=modules, **kept)
        check_widths(modules, readout.backbone.dim)
        executor = alike[0].executor if alike else Executor(readout.backbone)
        found[route] = Embedder(readout, executor, name=name)
    _check_alike(name, found)
    main, ranges = found[router.default], Ranges.load(router.folder)
    routes = {role: found[route] for role, route in router.roles.items()}
    return Embedder(main.readout, main.executor, name=name, ranges=ranges, routes=routes)


def _check_alike(name: str, found: Mapping[str, Embedder]) -> None:
    """Refuse routes whose vectors cannot be compared."""
    told = {
        route: ("sparse vectors of", one.backbone.vocab_size)
        if one.recipe.heads[0].kind == "sparse"
        else ("vectors of", one.dim)
        for route, one in found.items()
    }
    if len(set(told.values())) > 1:
        listed = ", ".join(f"{route}: {kind} {size}" for route, (kind, size) in told.items())
        raise UnsupportedError(
            f"the routes of {name!r} give vectors that cannot be compared ({listed}); the folder's "
            "parts are not of one model"
        )


@lru_cache(maxsize=256)
def _tell_of_no_recipe(name: str) -> None:
    """Say once of a model that nothing tells how it is read; the command line shows it."""
    log.info(
        "%s has no recipe of its own, and is read by plain-mean: the mean of its last states, "
        "without a prompt. Name another with --recipe (recipe=); embedlm recipes lists them",
        name,
    )


def _told(embedder: Embedder, source: str, *, has_recipe: bool) -> Embedder:
    """Tell how a model is read where nothing says that, and warn of a GGUF file's open end."""
    if not has_recipe:
        _tell_of_no_recipe(embedder.name)
    if not pools_last(source) or embedder.recipe.pooling.kind != "last":
        return embedder
    rendered = embedder.renderer.render(["a"], Request(None))
    if any(batch.segments[0][-1] == SEGMENT_ID["text"] for batch in rendered):
        log.warning(
            "%s reads the state of a text's last token, and adds no token after the text "
            "(tokenizer.ggml.add_eos_token), as embedding models of this kind do that are known; "
            "files made before July 2025 lack it. Take a newer file, or a recipe whose prompt ends "
            "with the token, such as {text}<|endoftext|> for Qwen3-Embedding",
            embedder.name,
        )
    return embedder


def load_to_train(
    model: str, recipe: Recipe, *, device: Any = None, lm_head: bool = False
) -> Embedder:
    """Load a model in float32, with untrained layers where its recipe reads some that it lacks."""
    source = model_source(model)
    if read_router(layout_folder(source)) is not None:
        raise routed(model, "EmbedLM trains models of one; take the folder of one of them")
    readout = load_readout(
        source, recipe, device=device, dtype="float32", lm_head=lm_head, create=True
    )
    readout = readout.with_statistics(fitted_tokens(source, readout))
    return Embedder(readout, Executor(readout.backbone), name=model)


def fitted_tokens(source: str, readout: Readout) -> Statistics | None:
    """Return how common tokens are, as a model's folder says, for a readout that is trained.

    What its vectors had in common is not true of those that will be.
    """
    pooling = readout.recipe.pooling
    found = Statistics.load(layout_folder(source), readout.backbone.vocab_size, None)
    if found is None or not pooling.reads_statistics:
        return None
    if pooling.remove_components:
        log.warning(
            "%s was fitted to a corpus, and the components that were found are not those of the "
            "trained model's vectors: fit it again (Embedder.fit, or --fit FILE)",
            source,
        )
    return found


def load_readout(
    source: str,
    recipe: Recipe,
    *,
    trained: bool = False,
    device: Any = None,
    dtype: Any = "auto",
    attn: str = "auto",
    adapters: Sequence[str] = (),
    merge: bool | None = None,
    lm_head: bool | Literal["if_cheap"] = False,
    max_length: int | dict[str, int] | None = None,
    create: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
    hub: Mapping[str, Any] | None = None,
    backbone: Backbone | None = None,
    places: Sequence[tuple[str, Path]] | None = None,
) -> Readout:
    """Load the network of a folder or hub id, and the layers that the recipe reads beside it.

    Args:
        source: folder or hub id.
        recipe: says how the network attends and what is read of it.
        trained: whether the recipe is the model's own, so that its heads are all it has.
        device: see `load`, as all that follow.
        dtype: see there.
        attn: see there.
        adapters: see there.
        merge: see there.
        lm_head: load the language-model head even where the recipe does not read it; "if_cheap":
            where it costs little memory.
        max_length: see there; as model_kwargs.
        create: make untrained layers for token vectors and weights that the checkpoint lacks.
        hub: token and cache_dir, see there.
        backbone: the network, where it is loaded already.
        places: kind and folder of the modules, where they are those of a route.
    """
    if max_length is not None:
        recipe = recipe.override({"prompt.max_length": max_length})
    merge = recipe.backbone.merge if merge is None else merge
    base, folders = _adapters(source, recipe, adapters, merge, hub or {})
    place = network_place(base)
    backbone = backbone or load_backbone(
        place,
        recipe.backbone,
        device=device,
        dtype=dtype,
        head=any(head.reads_lm_head for head in make_heads(recipe.heads)) or lm_head,
        attn=attn,
        adapters=folders,
        merge=merge,
        more=model_kwargs,
        stored=asked_dtype(layout_folder(place)),
    )
    if not trained and max_length is None:
        recipe = recipe.within(backbone.max_positions)
    folder = layout_folder(source)
    keep_markers(folder, backbone.tokenizer)
    own = Parts(place if base == source else source, folder, places)
    parts = own.for_recipe(recipe, backbone, create=create)
    if parts.latent is not None:
        recipe = recipe.override({"pooling.latent": parts.latent.config})
    return Readout(backbone, recipe, parts, trained=trained)


def _fitted(readout: Readout, source: str) -> tuple[Readout, Ranges]:
    """Return a readout with the statistics saved with its model, and the ranges saved there.

    Those of another recipe's vectors are left out.
    """
    folder = layout_folder(source)
    statistics = Statistics.load(folder, readout.backbone.vocab_size, readout.dense_width)
    ranges = Ranges.load(folder)
    known = statistics is not None or ranges.by_form
    if not known or not readout.recipe.gives_vectors_of(derive_recipe(source)):
        return readout, Ranges()
    return readout.with_statistics(statistics), ranges


def _own_recipe(name: str, source: str) -> Recipe | None:
    """Return the recipe that a model's hub id or its files tell; None: they tell none."""
    published = recipe_of_checkpoint(name) if source != name else None
    return published or own_recipe(source)


def _asked_for(recipe: Any, source: str) -> Recipe:
    """Return the recipe that was given; a system's own folder says its constants better."""
    chosen = Recipe.load(recipe)
    if isinstance(recipe, str):
        system = recognise(layout_folder(source))
        if system is not None and system.name == chosen.name:
            return system
    return chosen


def _adapters(
    source: str, recipe: Recipe, more: Sequence[str], merge: bool, hub: Mapping[str, Any]
) -> tuple[str, list[Path]]:
    """Return the base model and the adapters to put on it: the recipe's, the caller's, its own."""
    base, names = split_adapters(source)
    base = downloaded(base, **hub)
    names += [*recipe.backbone.adapters, *map(str, more)]
    folders = [adapter_folder(base, name, hub) for name in names]
    if not folders and not merge:
        folders = own_adapters(layout_folder(base), recipe.backbone.adapter_roles.values())
    return base, list({real_path(folder): folder for folder in folders}.values())


def model_source(name: str, **hub: Any) -> str:
    """Return the folder or hub id that a model's name stands for: built-in, GGUF or itself.

    `hub` are the revision, the token and the cache of what is downloaded.
    """
    if (built_in := BUILTIN.get(name)) is not None:
        return downloaded(_whole(name, built_in), **hub)
    folder = gguf_folder(name, **hub)
    on_hub = folder != name and not Path(name).exists() and not name.startswith("ollama:")
    return folder if on_hub else downloaded(folder, **hub)


def _whole(name: str, folder: Path) -> str:
    """Return the folder of a built-in model; another model never takes its place."""
    missing = [
        file for file in ("config.json", "model.safetensors") if not (folder / file).is_file()
    ]
    if missing:
        raise ModelError(
            f"the built-in model {name!r} lacks {folder / missing[0]}; reinstall embedlm, or give "
            "a model folder or hub id"
        )
    return str(folder)

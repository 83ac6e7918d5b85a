"""The server on Ray Serve: replicas over a cluster, each with its own models and batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embedlm.errors import InputError, require

__all__ = ["deployment"]


def deployment(
    models: Mapping[str, str | None] | None = None,
    indexes: Mapping[str, str] | None = None,
    *,
    load: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Return a Ray Serve application that answers all that `embedlm serve` does.

    `serve.run(deployment({"small": None}, num_replicas=2))` starts it. Each replica is an actor
    that loads the models itself.

    Args:
        models: name and source of each model, as `embedlm.load` takes them; None: the built-in one.
        indexes: name and folder of each index; every replica opens them, so that they must be of
            the store `exact`, which any number of processes can read.
        load: arguments of `embedlm.load`: recipe, dtype, device, ...
        limits: of each replica, see `Limits`.
        **options: of `ray.serve.deployment`: num_replicas, autoscaling_config, ray_actor_options.

    Raises:
        MissingExtraError: Ray Serve is not installed.
        InputError: limits that there are not.
    """
    serve = require("ray.serve", "ray")
    from embedlm.serving.settings import Limits

    try:
        chosen = Limits(**(limits or {}))
    except TypeError as error:
        raise InputError(f"limits: {error}; see embedlm.serving.Limits") from error

    def application() -> Any:
        own = "builtin" if (load or {}).get("recipe") is None else "builtin-base"
        return _application(dict(models or {own: None}), dict(indexes or {}), load, chosen)

    replica = serve.ingress(application)()
    return serve.deployment(replica, **{"name": "embedlm", **options}).bind()


def _application(
    models: Mapping[str, str | None],
    indexes: Mapping[str, str],
    load: Mapping[str, Any] | None,
    limits: Any,
) -> Any:
    """Return the application of one replica."""
    import embedlm
    from embedlm.serving import Models, Mounted, Service, create_app

    loaded = Models.of({name: embedlm.load(one, **(load or {})) for name, one in models.items()})
    served = list(loaded.embedders.values())
    mounted = {name: Mounted.open(name, path, served) for name, path in indexes.items()}
    return create_app(Service(loaded, mounted, limits=limits), host="0.0.0.0")

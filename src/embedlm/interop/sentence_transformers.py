"""An Embedder as a SentenceTransformer, for libraries that ask for one."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from embedlm.errors import UnsupportedError, require
from embedlm.interop.network_module import EmbedderModule
from embedlm.interop.opening import Place, opened, refuse_options
from embedlm.interop.prompts import RolePrompt, Voice, prompts_of, with_prompts
from embedlm.interop.readout_module import ReadoutModule
from embedlm.jobs.json_files import read_json, write_json
from embedlm.persistence.expressible import prefixes_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize
    from sentence_transformers.util.environment import check_version_requirements

    from embedlm.embedder import Embedder
else:
    SentenceTransformer = require("sentence_transformers", "eval").SentenceTransformer
    Normalize = require("sentence_transformers.sentence_transformer.modules", "eval").Normalize
    check_version_requirements = require(
        "sentence_transformers.util.environment", "eval"
    ).check_version_requirements

__all__ = ["EmbedderSentenceTransformer", "bridge"]

_SETTINGS = "config_sentence_transformers.json"
_LISTING = "modules.json"


class EmbedderSentenceTransformer(SentenceTransformer):
    """A SentenceTransformer whose network, prompts and vectors are an Embedder's.

    `encode` gives whole lists to the Embedder's engine, which plans, packs and runs equal texts
    once; `batch_size` therefore changes nothing. A prompt's name is a role of the recipe. A prompt
    given as a string replaces the recipe's prefix, or is written before the text where the recipe's
    template is more than a prefix.

    Calling the model on features is differentiable, so that sentence-transformers' trainer tunes
    the Embedder's own network.
    """

    def __init__(
        self,
        model_name_or_path: str | None = None,
        *,
        modules: Sequence[nn.Module] | None = None,
        device: Any = None,
        **options: Any,
    ) -> None:
        """Take modules that begin with an EmbedderModule, or open a folder or hub id.

        Args:
            model_name_or_path: for `embedlm.load`; `modules` have no effect then.
            modules: an EmbedderModule, and what follows it.
            device: as in `embedlm.load`; None: where the network of the modules is.
            **options: those of SentenceTransformer.

        Raises:
            UnsupportedError: there is no EmbedderModule, or options cannot be honoured.
        """
        self._device = device
        if options.get("backend", "torch") != "torch":
            raise UnsupportedError(f"backend is {options['backend']!r}; EmbedLM runs torch alone")
        if model_name_or_path is not None:
            super().__init__(model_name_or_path, device=None, **options)
        elif not modules or not isinstance(modules[0], EmbedderModule):
            raise UnsupportedError(
                f"modules {modules!r} hold no EmbedderModule; call as_sentence_transformer() of an "
                "Embedder, or give a model folder"
            )
        else:
            recipe = modules[0].embedder.recipe
            prefixes = prompts_of(recipe)
            options.setdefault("similarity_fn_name", recipe.similarity)
            options.setdefault("default_prompt_name", prefixes.default)
            options["prompts"] = {**prefixes.named, **(options.get("prompts") or {})}
            device = device or str(modules[0].embedder.device)
            super().__init__(modules=list(modules), device=device, **options)
        self._network.listening = True

    def _load_config_modules(
        self, model_name_or_path: str, *args: Any, **options: Any
    ) -> tuple[list[nn.Module] | OrderedDict[str, nn.Module], dict[str, Any]]:
        """Load an Embedder, and the folder's settings, in the place of the modules it lists."""
        embedder, folder = self._opened(model_name_or_path, options)
        settings = folder / _SETTINGS
        if settings.is_file():
            saved = read_json(settings)
            check_version_requirements(saved.get("requirements"), source=model_name_or_path)
            self._parse_model_config(saved)
        card = folder / "README.md"
        if card.is_file():
            self.__dict__["_model_card_text"] = card.read_text(encoding="utf-8")
        if not Path(model_name_or_path).exists():
            revision = options.get("revision")
            self.model_card_data.set_base_model(model_name_or_path, revision=revision)
        return self._modules_of(embedder)

    def _load_default_modules(
        self, model_name_or_path: str, *args: Any, **options: Any
    ) -> tuple[list[nn.Module] | OrderedDict[str, nn.Module], dict[str, Any]]:
        """Load an Embedder of a folder without such modules."""
        return self._modules_of(self._opened(model_name_or_path, options)[0])

    def _load_converted_modules(
        self, model_name_or_path: str, *args: Any, **options: Any
    ) -> tuple[list[nn.Module] | OrderedDict[str, nn.Module], dict[str, Any]]:
        """Load the network of a model of another kind, with mean pooling, as there."""
        embedder, _ = self._opened(model_name_or_path, options, recipe="plain-mean")
        return self._modules_of(embedder)

    def _opened(
        self, name: str, options: Mapping[str, Any], recipe: str | None = None
    ) -> tuple[Embedder, Path]:
        """Load an Embedder with SentenceTransformer's options; no remote code is run."""
        names = ("processor_kwargs", "config_kwargs")
        refuse_options(**{each: options.get(each) for each in names})
        place = Place(**{each.name: options.get(each.name) for each in fields(Place)})
        kwargs = options.get("model_kwargs") or {}
        return opened(name, place, self._device, kwargs, recipe)

    def _modules_of(
        self, embedder: Embedder
    ) -> tuple[list[nn.Module] | OrderedDict[str, nn.Module], dict[str, Any]]:
        """Return the modules around an Embedder, and take the settings of its recipe."""
        self._fill_prompts(embedder)
        if self._similarity_fn_name is None:
            self.similarity_fn_name = embedder.recipe.similarity
        return modules_of(embedder), {}

    def _fill_prompts(self, embedder: Embedder) -> None:
        """Take the recipe's prompts where neither the caller nor the folder's settings say any."""
        prefixes = prompts_of(embedder.recipe)
        named = dict(prefixes.named)
        if self.default_prompt_name is None:
            self.default_prompt_name = prefixes.default
        elif prefixes.default is not None and self.default_prompt_name != prefixes.default:
            named.pop(prefixes.default)
        for name, prompt in named.items():
            if self.prompts.get(name) is None:
                self.prompts[name] = prompt

    @property
    def embedder(self) -> Embedder:
        """The Embedder that encodes."""
        return self._network.embedder

    @property
    def _network(self) -> EmbedderModule:
        module = self[0]
        assert isinstance(module, EmbedderModule)
        return module

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        device: torch.device = self.embedder.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network."""
        return self.embedder.backbone.dtype

    @property
    def transformers_model(self) -> Any:
        """The network."""
        return self.embedder.backbone.network

    def __delitem__(self, index: slice | int) -> None:
        """Take out a module that was added.

        Raises:
            UnsupportedError: it is one of the Embedder's own, or there is none.
        """
        own = 2 if len(self) > 1 and isinstance(self[1], ReadoutModule) else 1
        places = range(len(self))
        inside = isinstance(index, slice) or -len(self) <= index < len(self)
        chosen = places[index] if inside else own - 1
        if min(chosen if isinstance(chosen, range) else [chosen], default=own) < own:
            raise UnsupportedError(
                f"the module {index} cannot be taken out: the recipe says what an Embedder's "
                "modules do, normalising too; for vectors that are not normalised, take "
                'model.with_recipe(model.recipe.override({"normalize": False})) and its '
                "as_sentence_transformer()"
            )
        super().__delitem__(index)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move or cast the network, as torch does."""
        return super().to(*args, **kwargs) if self._network.listening else self

    # -- encoding -------------------------------------------------------------------------------

    def _resolve_prompt(self, prompt: str | None, prompt_name: str | None) -> str | None:
        """Return the prompt to use, marked with its role where it is the recipe's own."""
        text = super()._resolve_prompt(prompt, prompt_name)
        if prompt is not None or text is None:
            return text
        name = self.default_prompt_name if prompt_name is None else prompt_name
        if name is None or text != prompts_of(self.embedder.recipe).named.get(name):
            return text
        return RolePrompt(text, None if name == "default" else name)

    @torch.inference_mode()
    def _inference(
        self,
        inputs: list[Any],
        *,
        prompt: str | None = None,
        output_value: str | None = "sentence_embedding",
        device: Any = None,
        **options: Any,
    ) -> Any:
        """Return the outputs of inputs, in their order."""
        if device is not None and torch.empty(0, device=device).device != self.device:
            self.to(device)
        self.eval()
        # Added modules, hooks and compile() have their effect in a call of the model alone.
        called = self._added() or self._forward_hooks or self._compiled_call_impl is not None
        if called or output_value != "sentence_embedding":
            return super()._inference(inputs, prompt=prompt, output_value=output_value, **options)
        return self._vectors(inputs, prompt, **options)

    def _vectors(
        self,
        inputs: list[Any],
        prompt: str | None,
        *,
        show_progress_bar: bool | None = None,
        save_to_cpu: bool = True,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        processing_kwargs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> Tensor:
        """Return the dense vectors of inputs by the engine; cut after normalising, as there."""
        if not inputs:
            return torch.tensor([], device=self.device)
        voice = Voice.of(self.embedder, prompt)
        vectors = voice.embedder.encode(
            voice.led(inputs),
            role=voice.role,
            heads="dense",
            max_length=self._network.max_length_of(processing_kwargs),
            show_progress=bool(show_progress_bar),
        )
        vectors_ND = torch.from_numpy(vectors)[:, :truncate_dim]
        if normalize_embeddings:
            vectors_ND = nn.functional.normalize(vectors_ND, dim=1)
        return vectors_ND if save_to_cpu else vectors_ND.to(self.device)

    # -- files ----------------------------------------------------------------------------------

    def save(
        self,
        path: str,
        model_name: str | None = None,
        create_model_card: bool = True,
        train_datasets: list[str] | None = None,
        safe_serialization: bool = True,
    ) -> None:
        """Save the Embedder with this model's prompts and settings; other files there stay.

        Raises:
            UnsupportedError: pickled weights were asked for; modules were added; or prompts were
                changed that the recipe's templates cannot take.
        """
        if path is None:
            return
        if not safe_serialization:
            raise UnsupportedError("weights are saved as safetensors; leave safe_serialization out")
        added = [module for module in self._added() if not _normalizes(module)]
        if added:
            names = ", ".join(type(module).__name__ for module in added)
            raise UnsupportedError(
                f"the modules {names} were added to the model, and a recipe cannot hold them; save "
                "without them"
            )
        target = Path(path)
        target.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target, prefix=".saving-") as unfinished:
            folder = Path(unfinished) / "model"
            self._with_settings().save_pretrained(folder)
            self._write_settings(folder)
            if create_model_card:
                self._create_model_card(str(folder), model_name, train_datasets)
            else:
                (folder / "README.md").unlink(missing_ok=True)
            shutil.copytree(folder, target, dirs_exist_ok=True)

    def _added(self) -> list[nn.Module]:
        """Return the modules that stand after the Embedder's own."""
        return [module for module in list(self)[1:] if not isinstance(module, ReadoutModule)]

    def _with_settings(self) -> Embedder:
        """Return the Embedder by a recipe that holds what was changed on this model."""
        recipe = self.embedder.recipe
        prompts = {name: prompt or "" for name, prompt in self.prompts.items()}
        prefixes = prompts_of(recipe)
        changed = (prompts, self.default_prompt_name) != (prefixes.named, prefixes.default)
        if changed and prefixes_of(recipe) is None:
            raise UnsupportedError(
                f"the prompts {prompts!r} cannot be saved: recipe {recipe.name!r} writes around a "
                "text, not before it alone; set them back, or load the model by another recipe"
            )
        recipe = with_prompts(recipe, prompts, self.default_prompt_name)
        if self.similarity_fn_name != recipe.similarity:
            recipe = recipe.override({"similarity": self.similarity_fn_name})
        if self._added():
            recipe = recipe.override({"normalize": True})
        same = recipe == self.embedder.recipe
        return self.embedder if same else self.embedder.with_recipe(recipe)

    def _write_settings(self, folder: Path) -> None:
        """Write this model's settings.

        Where sentence-transformers cannot express the recipe, it opens the folder by our module
        (with trust_remote_code), if all roles have one template: it tells our module no role.
        """
        settings = self._get_model_config()
        if (folder / _LISTING).is_file():
            settings = {**read_json(folder / _SETTINGS), **settings}
        else:
            renderer = self.embedder.renderer
            if any(renderer.templates(x) != renderer.templates(None) for x in renderer.roles()):
                return
            kind = f"{EmbedderModule.__module__}.{EmbedderModule.__qualname__}"
            write_json(folder / _LISTING, [{"idx": 0, "name": "0", "path": "", "type": kind}])
        write_json(folder / _SETTINGS, settings)

    @classmethod
    def _load_with_module_classes(
        cls, model_name_or_path: str, module_classes: Mapping[str, Any], **options: Any
    ) -> EmbedderSentenceTransformer:
        """Load a checkpoint that the trainer saved."""
        return cls(model_name_or_path, device=options.get("device"))


# Model cards and messages name the class that opens what is saved.
EmbedderSentenceTransformer.__name__ = "SentenceTransformer"


def bridge(embedder: Embedder) -> EmbedderSentenceTransformer:
    """Return a SentenceTransformer around an embedder."""
    embedder.check_one_route(
        "taken as one of its modules; save it, and open the folder with sentence-transformers"
    )
    return EmbedderSentenceTransformer(modules=modules_of(embedder))


def modules_of(embedder: Embedder) -> list[nn.Module]:
    """Return the modules around an embedder: its network and its readout."""
    network = EmbedderModule(embedder, reads=False)
    return [network, ReadoutModule(network)]


def _normalizes(module: nn.Module) -> bool:
    """Tell whether an added module is what a recipe's `normalize` does."""
    names = {getattr(module, f"module_{end}_name", "") for end in ("input", "output")}
    return type(module) is Normalize and names <= {"sentence_embedding"}

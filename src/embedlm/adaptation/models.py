"""The models of a run: the base, what it learns from, and what writes queries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedlm.adaptation.written import Writer
from embedlm.encode.identity import identity
from embedlm.errors import InputError, UnsupportedError
from embedlm.jobs.manifest import facts_digest
from embedlm.loader import load
from embedlm.rerank import Reranker, is_reranker
from embedlm.schema.recipe import Recipe
from embedlm.schema.unread import without_effect
from embedlm.schema.yaml_files import parse_yaml
from embedlm.training.plan import find_model

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["Models"]


@dataclass(frozen=True, slots=True)
class Models:
    """All models of a run, loaded."""

    name: str
    """The base's, as it was given."""
    base: Embedder
    recipe: dict[str, Any] | None
    """Fields of the recipe that was given; None: the model's own."""
    teacher: Embedder | None
    reranker: Reranker | None
    writer: Writer | None
    device: Any

    @classmethod
    def of(
        cls,
        model: Any,
        recipe: Any,
        teacher: Any,
        reranker: Any,
        llm: Any,
        pipeline: Any,
        device: Any,
    ) -> Models:
        """Load the models.

        Raises:
            InputError: a model that is no folder or hub id, both a teacher and a re-ranker, or a
                pipeline that cannot be used.
            UnsupportedError: the base or the teacher has no dense head.
        """
        name = "builtin" if model is None else model
        if not isinstance(name, str | Path):
            raise InputError(
                f"model is {type(model).__name__}; give a folder or hub id, since training opens it"
            )
        if teacher is not None and reranker is not None:
            raise InputError("teacher and reranker were given; scores come from one: give one")
        if not isinstance(teacher, str | Path | None):
            raise InputError(
                f"teacher is {type(teacher).__name__}; give a folder or hub id for training to open"
            )
        if isinstance(teacher, str | Path) and is_reranker(teacher):
            teacher, reranker = None, teacher
        if isinstance(teacher, str | Path):
            teacher = load(str(teacher), device=device)
        if isinstance(reranker, str | Path):
            reranker = Reranker(str(reranker), device=device)
        base = load(find_model(str(name), Path(), None), recipe, device=device)
        base.check_one_route("tuned")
        for one, what in ((base, "the model"), (teacher, "the teacher")):
            if one is not None and all(head.kind != "dense" for head in one.recipe.heads):
                raise UnsupportedError(f"{what} {one.name!r} has no dense head; name another")
        own = None if recipe is None else _fields(base.recipe)
        if llm is None and pipeline is not None:
            raise InputError(f"pipeline is {str(pipeline)!r}, and no llm was given to run it")
        writer = None if llm is None else Writer.of(llm, pipeline, base, reranker)
        return cls(str(name), base, own, teacher, reranker, writer, device)

    @property
    def source(self) -> str:
        """The folder or hub id that the base is loaded from."""
        return find_model(self.name, Path(), None)

    @property
    def teacher_source(self) -> str | None:
        """The folder or hub id that the embedder that teaches is loaded from."""
        return None if self.teacher is None else find_model(self.teacher.name, Path(), None)

    @property
    def taught_by(self) -> str | None:
        """What gives the scores that are distilled; None: nothing does."""
        if self.reranker is not None:
            return "reranker"
        return None if self.teacher is None else "embedder"

    @property
    def miners(self) -> list[Any]:
        """What ranks passages; its scores are kept."""
        return [self.base if self.teacher is None else self.teacher]

    @property
    def save_dtype(self) -> str:
        """The numbers in which the base is stored: those of the tuned model, too."""
        stored = str(getattr(self.base.backbone.config, "dtype", None)).removeprefix("torch.")
        return stored if stored in ("bfloat16", "float16") else "float32"

    def check(self) -> None:
        """Refuse, before anything is done, a teacher that would teach nothing.

        Raises:
            InputError: the teacher is the base itself.
        """
        if self.teacher is not None and self._digest(self.teacher) == self._digest(self.base):
            raise InputError("the teacher is the model itself, which has nothing to learn from it")

    def facts(self) -> dict[str, Any]:
        """Return what tells these models from others."""
        told: dict[str, Any] = {
            "model": {"name": Path(self.name).name, "digest": self._digest(self.base)}
        }
        if self.teacher is not None:
            name = Path(self.teacher.name).name
            told["teacher"] = {"name": name, "digest": self._digest(self.teacher)}
        if self.reranker is not None:
            digest = facts_digest(self.reranker.identity())
            told["reranker"] = {"name": Path(self.reranker.name).name, "digest": digest}
        if self.writer is not None:
            told["llm"] = self.writer.facts()
        return told

    def _digest(self, model: Embedder) -> str:
        return facts_digest(identity(model, with_head=False))


def _fields(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as a plan holds it: without what has no effect, which plans refuse."""
    read = recipe.override(without_effect(recipe))
    return dict(parse_yaml(read.dump(), "the recipe"))

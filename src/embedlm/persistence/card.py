"""The README of a saved model: what it is, how to open it, its recipe, licence and scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import EvalResult, ModelCardData, metadata_load

from embedlm.persistence.listing import LISTING
from embedlm.schema.arguments import check_arguments, check_names

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["Card", "stated"]


def stated(folder: str) -> dict[str, str]:
    """Return the licence and the base model that the card in a model's folder states.

    A network that lies below its model's folder has the card there.
    """
    place = Path(folder)
    if not (place / "README.md").is_file() and (place.parent / LISTING).is_file():
        place = place.parent
    try:
        data = metadata_load(place / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):  # no card, or one that a person broke
        return {}
    found = {name: data.get(name) for name in ("license", "base_model")}
    return {name: value for name, value in found.items() if isinstance(value, str)}


@dataclass(frozen=True, slots=True)
class Card:
    """What a model's card says beside what the model itself tells."""

    license: str | None = None
    """An identifier of the hub: apache-2.0, mit, cc-by-4.0, other, ...; None: what the card in the
    model's folder states."""
    base_model: str | None = None
    """None: what that card states, else the model's own name, where that is a hub id."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Measured scores by task, or by `task metric`."""

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Card:
        """Return the card with the facts of a call.

        Raises:
            InputError: an unknown fact, or a value that is not allowed.
        """
        check_names("save_pretrained", facts, [field.name for field in fields(cls)])
        return cls(**facts)

    def __post_init__(self) -> None:
        facts = {field.name: getattr(self, field.name) for field in fields(self)}
        check_arguments("save_pretrained", **facts)

    def write(self, embedder: Embedder, folder: Path, note: str, name: str) -> None:
        """Write README.md; `note` says who else opens the folder, `name` what it is called."""
        recipe, card = embedder.recipe, self._with(stated(embedder.backbone.name))
        parts = [
            f"---\n{card._metadata(embedder)}\n---",
            f"# {recipe.name}",
            recipe.summary,
            f"Saved by EmbedLM. {note}",
            f"```python\nimport embedlm\n\nmodel = embedlm.load({name!r})\n```",
            card._facts(embedder),
        ]
        if self.scores:
            rows = [f"| {task} | {score:.4f} |" for task, score in self.scores.items()]
            parts.append("## Scores\n\n" + "\n".join(["| task | score |", "|---|---|", *rows]))
        if recipe.citation:
            paper = f" {recipe.paper}." if recipe.paper else ""
            parts.append(f"## Method\n\n{recipe.citation}.{paper}")
        if recipe.notes:
            parts.append(f"## Notes\n\n{recipe.notes.strip()}")
        if recipe.tuning is not None and recipe.tuning.notes:
            parts.append(f"## How the published models were tuned\n\n{recipe.tuning.notes.strip()}")
        parts.append(f"## Recipe\n\n```yaml\n{recipe.dump()}```")
        text = "\n\n".join(part for part in parts if part) + "\n"
        (folder / "README.md").write_text(text, encoding="utf-8")

    def _with(self, facts: Mapping[str, Any]) -> Card:
        """Return the card with these facts where it has none."""
        own = {name: getattr(self, name) or fact for name, fact in facts.items()}
        return replace(self, **own)

    def _base(self, embedder: Embedder) -> str | None:
        own = embedder.name
        named = own.count("/") == 1 and not own.startswith((".", "/", "~"))
        return self.base_model or (own if named and not Path(own).exists() else None)

    def _metadata(self, embedder: Embedder) -> str:
        results = [
            EvalResult(
                task_type="sentence-similarity",
                dataset_type=task.split()[0],
                dataset_name=task.split()[0],
                metric_type=task.split()[-1] if " " in task else "score",
                metric_value=score,
            )
            for task, score in self.scores.items()
        ]
        data = ModelCardData(
            library_name="embedlm",
            pipeline_tag="sentence-similarity",
            tags=["embedlm", "sentence-transformers", "feature-extraction", embedder.recipe.name],
            license=self.license,
            base_model=self._base(embedder),
            eval_results=results or None,
            model_name=embedder.recipe.name if results else None,
        )
        return str(data.to_yaml(original_order=["license", "library_name", "pipeline_tag"]))

    def _facts(self, embedder: Embedder) -> str:
        direction = "causal" if embedder.backbone.causal else "bidirectional"
        facts: dict[str, Any] = {
            "width of a dense vector": embedder.dim,
            "tokens of a text": embedder.max_length or "no limit",
            "attention": direction,
            "licence": self.license or "not stated: that of the base model holds",
            "base model": self._base(embedder) or "not stated",
        }
        rows = [f"| {name} | {value} |" for name, value in facts.items()]
        return "\n".join(["| | |", "|---|---|", *rows])

"""Items become training records."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from embedlm.data import Document, TrainingRecord
from embedlm.mining.lines import text_key
from embedlm.schema.pipeline import Write
from embedlm.synthesis.asking import Outcome
from embedlm.synthesis.items import Item, fill

__all__ = ["record_of"]

_WHOLE = re.compile(r"\{([a-z][a-z0-9_]*)\}")


def record_of(step: Write, item: Item, pipeline: str, by: str | None) -> Outcome:
    """Return the record of an item, as JSON has it; or why there is none.

    Args:
        step: says which fields become what.
        item: holds them.
        pipeline: its name, for the provenance.
        by: the language model's name; None: none was asked.
    """
    query = fill(step.query, item).strip()
    sides = [_documents(step.positives, item), _documents(step.negatives, item)]
    keys = {text_key(document.text) for document in sides[0]}
    kept = [document for document in sides[1] if text_key(document.text) not in keys]
    reason = ""
    if not query or not sides[0]:
        reason = "no query" if not query else "no positive"
    elif len(kept) < len(sides[1]):
        reason = "a negative is the positive"
    elif text_key(query) in keys:
        reason = "the query is the positive"
    if reason:
        return Outcome(aside=[(f"{step.name}: {reason}", item)])
    if step.unique_ids:
        query = f"{query} {item['id']}"
        for document in (*sides[0], *sides[1]):
            document.text = f"{document.text} {item['id']}"
    record = TrainingRecord(query, sides[0], sides[1])
    record.instruction = None if step.instruction is None else fill(step.instruction, item) or None
    for document, score in zip(record.documents, step.scores, strict=False):
        document.score = float(fill(score, item))
    record.others = {"id": str(item["id"])}
    for name in ("task", "language", "source"):
        template = getattr(step, name)
        if template is not None:
            record.others[name] = fill(template, item)
    record.others |= {name: fill(template, item) for name, template in step.others.items()}
    record.provenance = _provenance(step, pipeline, by)
    return Outcome([record.to_json()])


def _documents(templates: Sequence[str], item: Item) -> list[Document]:
    """Return the documents of some templates; a field that is a list gives one for each entry."""
    found: list[Document] = []
    for template in templates:
        whole = _WHOLE.fullmatch(template)
        value = item[whole[1]] if whole is not None else None
        texts = value if isinstance(value, list) else [fill(template, item)]
        id = item.get(f"{whole[1]}_id") if whole is not None else None
        found += [Document(str(text).strip(), id) for text in texts if str(text).strip()]
    return found


def _provenance(step: Write, pipeline: str, by: str | None) -> dict[str, Any]:
    """Return where a record's fields come from: the input, or the language model."""
    told = {"by": "embedlm synthesize", "pipeline": pipeline}
    return {"record": {**told, "model": by} if by is not None else told}

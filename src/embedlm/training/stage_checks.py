"""Settings of a stage that nothing would read: they are refused, never dropped."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from embedlm.errors import InputError, closest
from embedlm.schema.plan import Plan
from embedlm.schema.prompt import Message, Prompt
from embedlm.schema.recipe import Recipe
from embedlm.schema.template import parse_template
from embedlm.schema.tuning import Data, Stage
from embedlm.training.batches import Batches
from embedlm.training.named_adapters import adapters_of
from embedlm.training.objectives import EMBEDDING, TEACHERS, head_of

__all__ = [
    "check_dev",
    "check_instructions",
    "check_prompt",
    "check_stage",
    "check_teacher",
    "named_models",
]

log = logging.getLogger(__name__)
MASKED = ("mntp", "mlm")
"""Losses that hide as many tokens as `mask_probability` says."""
Unread = Iterator[tuple[str, str]]
"""A setting, and why nothing reads it."""


def check_stage(stage: Stage, batches: Batches, plan: Plan) -> None:
    """Refuse a stage that sets what its objectives, its data or its plan have no use for.

    Raises:
        InputError: it names the setting, and says why nothing reads it.
    """
    embeds = any(loss.kind in EMBEDDING for loss in stage.objective)
    for setting, why in (
        *_of_objectives(stage, embeds=embeds),
        *_of_batches(stage, batches, embeds=embeds),
        *_of_data(stage, batches.kind, embeds=embeds),
        *_of_plan(stage, plan),
    ):
        raise InputError(f"stage {stage.name!r}: {setting} has no effect: {why}")
    _check_scorers(stage, batches, plan)
    _check_mixture(stage)


def _of_objectives(stage: Stage, *, embeds: bool) -> Unread:
    kinds = [loss.kind for loss in stage.objective]
    if stage.mask_probability is not None and not set(kinds) & set(MASKED):
        yield "mask_probability", f"it is for {' and '.join(MASKED)}; leave it out"
    if stage.denoise is not None and not embeds:
        yield "denoise", f"{', '.join(kinds)} pool no states; leave it out"


def _of_batches(stage: Stage, batches: Batches, *, embeds: bool) -> Unread:
    groups, given = batches.kind == "groups", stage.batching.model_fields_set
    if "group_size" in given and not groups:
        yield "batching.group_size", f"the records are {batches.kind}; leave it out"
    if stage.batching.demonstrations and not (groups and embeds):
        what = f"the records are {batches.kind}" if not groups else "no text is embedded"
        yield "batching.demonstrations", f"{what}; leave it out"
    if stage.dynamic_negatives is not None:
        heads = [head_of(loss) for loss in stage.objective if loss.kind in EMBEDDING]
        if not batches.negatives:
            yield "dynamic_negatives", "no hard negatives are used; leave it out, or mine some"
        elif not any("dense" in head.split("+") for head in heads):
            yield "dynamic_negatives", "it compares dense vectors, and no objective has any"


def _of_data(stage: Stage, kind: str, *, embeds: bool) -> Unread:
    roles = {"query", "document"} if kind == "groups" else {"default"}
    for entry in stage.data:
        where = f"{{source: {entry.source}}}"
        given = [n for n in ("instruction", "document_instruction") if getattr(entry, n)]
        if given and not embeds:
            yield f"{given[0]} of {where}", "no objective embeds texts; leave it out"
        if isinstance(entry.adapter, dict):
            for role in sorted(entry.adapter.keys() - roles):
                allowed = f"{' and '.join(sorted(roles))}.{closest(role, sorted(roles))}"
                yield f"adapter.{role} of {where}", f"{kind} have the roles {allowed}"
    limit = stage.max_length
    read = {"query", "document"} if kind == "groups" else {"default", "document"}
    if isinstance(limit, dict) and embeds and not read & limit.keys():
        yield (
            f"max_length.{next(iter(limit))}",
            f"{kind} read {' and '.join(sorted(read))}; give one of these",
        )


def _of_plan(stage: Stage, plan: Plan) -> Unread:
    if stage.keep == "best" and plan.dev is None:
        yield "keep: best", "the plan has no dev set to choose by; give `dev`, or leave it out"


def _check_mixture(stage: Stage) -> None:
    """Refuse weights that say nothing of the share of the other data sets.

    Raises:
        InputError: some data sets have a weight, or all have and the sizes are to count, too.
    """
    weighed = [entry.weight is not None for entry in stage.data]
    where = f"stage {stage.name!r}"
    if any(weighed) and not all(weighed):
        bare = stage.data[weighed.index(False)].source
        raise InputError(
            f"{where}: some data sets have a weight and {bare!r} has none, so that its share is "
            "not known; give every data set a weight, or none"
        )
    if all(weighed) and stage.batching.mixture_temperature != 1:
        raise InputError(
            f"{where}: batching.mixture_temperature has no effect: it is for data sets drawn by "
            "their size, and these have weights; leave one of the two out"
        )


def _check_scorers(stage: Stage, batches: Batches, plan: Plan) -> None:
    """Refuse losses of one stage that learn from the scores of different models, or of none.

    Raises:
        InputError: names the models, or the scores of the records that are read instead.
    """
    scorers: dict[str, None] = {}
    teachers: dict[str, None] = {}
    for loss in stage.objective:
        for option in TEACHERS:
            named = loss.options.get(option)
            if named and EMBEDDING[loss.kind].teacher:
                scorers[f"{option}: {named}"] = None
                if named != plan.teacher and all(one.has_scores for one in batches.sets):
                    raise InputError(
                        f"stage {stage.name!r}: {option} of {loss.kind} has no effect: all records "
                        "have scores, which it learns from; leave it out, or take the scores out "
                        "of the records"
                    )
            if named and option == "teacher":
                teachers[str(named)] = None
    if len(teachers) > 1:
        raise InputError(
            f"stage {stage.name!r} names several models as teacher: {', '.join(teachers)}; give one"
        )
    if len(scorers) > 1:
        raise InputError(
            f"stage {stage.name!r} names several models that score documents: "
            f"{', '.join(scorers)}; give one, or average them: teachers: [MODEL, MODEL]"
        )


def check_prompt(stage: Stage, recipe: Recipe, kind: str) -> None:
    """Refuse instructions and examples that the recipe's templates have no place for.

    Heads that the recipe does not name are told of.

    Raises:
        InputError: it says for which texts.
    """
    prompt, where = recipe.prompt, f"stage {stage.name!r}"
    for entry in stage.data:
        check_instructions(where, entry, kind, recipe)
    if stage.batching.demonstrations:
        lacks = prompt.demonstration is None and "demonstration"
        lacks = lacks or ("demonstrations" not in _slots(prompt, "query") and "{demonstrations}")
        if lacks:
            raise InputError(
                f"{where}: batching.demonstrations has no effect: the recipe's prompt has no "
                f"{lacks}; leave it out, or choose a recipe that takes examples, such as bge-icl"
            )
    _tell_heads(stage, recipe)


def check_instructions(where: str, entry: Data, kind: str, recipe: Recipe) -> None:
    """Refuse instructions of a data set that no text of it, or no template, has a place for.

    Args:
        where: begins the message.
        entry: the data set.
        kind: of its records.
        recipe: the model's.

    Raises:
        InputError: it says for which texts.
    """
    if entry.document_instruction and kind != "groups":
        raise InputError(
            f"{where}: document_instruction of {{source: {entry.source}}} has no effect: the "
            f"records are {kind}; give instruction"
        )
    first, second = ("query", "document") if kind == "groups" else (None, None)
    for name, role in (("instruction", first), ("document_instruction", second)):
        if getattr(entry, name) and "instruction" not in _slots(recipe.prompt, role):
            what = f"role {role}" if role else "texts without a role"
            raise InputError(
                f"{where}: {name} of {{source: {entry.source}}} has no effect: the recipe's "
                f"template for {what} has no {{instruction}}; leave it out, or change the "
                f"template: change: {{prompt.{role or 'default'}: ...}}"
            )


def _tell_heads(stage: Stage, recipe: Recipe) -> None:
    """Warn of heads that a stage trains and that the trained model will not give."""
    named = [head.kind for head in recipe.heads]
    read = [head_of(loss).split("+") for loss in stage.objective if loss.kind in EMBEDDING]
    unnamed = [head for heads in read for head in heads if head not in named]
    if unnamed:
        log.warning(
            "stage %r trains what the recipe does not name, %s, and the trained model will not "
            "give it; add change: {heads: [%s]}",
            stage.name,
            " and ".join(dict.fromkeys(unnamed)),
            ", ".join(dict.fromkeys([*named, *unnamed])),
        )


def _slots(prompt: Prompt, role: str | None) -> set[str]:
    """Return the kinds of the slots of the template for a role."""
    own = {"query": prompt.query, "document": prompt.document}.get(role or "")
    candidates = (own, prompt.default, prompt.document, prompt.query)
    template: Any = next((one for one in candidates if one is not None), "{text}")
    parts = [template] if isinstance(template, str) else template
    texts = [part.content if isinstance(part, Message) else str(part) for part in parts]
    return {piece.kind for text in texts for piece in parse_template(text)}


def check_dev(plan: Plan, recipe: Recipe, kind: str) -> None:
    """Refuse a role of the dev set's texts that is not there, or that nothing reads.

    Raises:
        InputError: it says which roles there are.
    """
    for stage in plan.stages:
        names = adapters_of(stage)
        if len(names) > 1 and not isinstance(stage.data[0].adapter, dict):
            log.warning("stage %r: the dev set is scored with the adapter %s", stage.name, names[0])
    role = plan.dev.role if plan.dev is not None else None
    if role is None:
        return
    roles = ["query", "document", *recipe.prompt.roles]
    if role not in roles:
        raise InputError(
            f"dev.role {role!r} is not defined by the recipe; allowed: {', '.join(roles)}."
            + closest(role, roles)
        )
    if kind != "pairs":
        raise InputError(
            "dev.role has no effect: it is for scored pairs, and these records are queries with "
            "their documents; leave it out"
        )
    for stage in plan.stages:
        by_role = isinstance(stage.data[0].adapter, dict) if stage.data else False
        if adapters_of(stage) and (stage.train == "query_encoder" or by_role):
            raise InputError(
                f"dev.role has no effect in stage {stage.name!r}: it trains adapters by role, and "
                "the first text of a pair is the query, the second the document; leave it out"
            )


def check_teacher(plan: Plan, *, starts: bool) -> None:
    """Refuse a plan's teacher that nothing learns from.

    Args:
        plan: with its stages, whose losses have the plan's teacher where they need one.
        starts: whether a projection starts by ridge regression.

    Raises:
        InputError: no objective and no start takes it.
    """
    own = plan.ridge is not None and plan.ridge.teacher is not None
    named = {name for stage in plan.stages for _, name in named_models(stage)}
    if plan.teacher is not None and plan.teacher not in named and (own or not starts):
        raise InputError(
            f"teacher {plan.teacher!r} has no effect: no objective learns from a teacher without "
            "naming one of its own; leave it out"
        )


def named_models(stage: Stage) -> list[tuple[str, str]]:
    """Return the models that a stage's losses name, each with its option."""
    found: dict[tuple[str, str], None] = {}
    for loss in stage.objective:
        for option in TEACHERS:
            named = loss.options.get(option) or []
            for one in named if isinstance(named, list) else [named]:
                found[option, str(one)] = None
    return list(found)

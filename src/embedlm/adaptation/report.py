"""What a run tells at its end: report.json for programs, report.md for readers, the card's part.

A report holds no times and no paths of its own, so that a run that was killed and went on ends in
the same files as one that was not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from embedlm.adaptation.evaluating import METRIC, Verdict, scores_of
from embedlm.evaluation.results import Result

__all__ = ["card_part", "made_report", "markdown"]


def made_report(
    verdict: Verdict,
    base: Sequence[Result],
    tuned: Sequence[Result] | None,
    facts: Mapping[str, Any],
    why_no_suite: str,
) -> dict[str, Any]:
    """Return the report.

    Args:
        verdict: which model is kept.
        base: results of the base, the held-out queries' first.
        tuned: those of the tuned model.
        facts: what the steps before have told.
        why_no_suite: why the general suite was not run; "" where it was.
    """
    before = scores_of(base[0])
    after = scores_of(tuned[0]) if tuned is not None else None
    held = verdict.held_out
    general = None if verdict.general is None else verdict.general.as_dict()
    for task in [] if general is None else general["tasks"].values():
        del task["queries"]
    return {
        "kept": verdict.kept,
        "why": verdict.why,
        "before": before,
        "after": after if verdict.kept == "tuned" else before,
        "tuned": after,
        "gain": None if held is None else asdict(held),
        "general": general,
        "general_left_out": why_no_suite or None,
        **facts,
    }


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report for readers."""
    kept = "the tuned model" if report["kept"] == "tuned" else "the untouched base"
    parts = [
        "# Adaptation",
        f"Kept: **{kept}**. {_sentence(report['why'])}",
        _scores(report),
        _general(report),
        _data(report),
        _training(report["trained"]),
        _examples(report["gain"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def card_part(report: Mapping[str, Any]) -> str:
    """Return what the card of a tuned model says of its adaptation."""
    base = report["run"]["model"]["name"]
    told = [
        "## Adapted",
        f"From `{base}` by `embedlm adapt`, on queries made from {report['documents']:,} documents "
        f"({_kinds(report['queries']['train'])}).",
        _training(report["trained"]),
        _scores(report),
        _general(report),
        "Queries that are made from documents are not those that people ask: measure the model on "
        "your own where you can.",
    ]
    return "\n\n".join(part for part in told if part) + "\n"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _scores(report: Mapping[str, Any]) -> str:
    rows = ["| model | nDCG@10 | 95 % interval | MRR@10 | recall@10 |", "|---|---|---|---|---|"]
    for name, scores in (("base", report["before"]), ("tuned", report["tuned"])):
        if scores is not None:
            low, high = scores["interval"]
            more = " | ".join(f"{scores[one]:.4f}" for one in ("mrr@10", "recall@10"))
            rows.append(f"| {name} | {scores[METRIC]:.4f} | {low:.4f} to {high:.4f} | {more} |")
    count = sum(report["queries"]["held_out"].values())
    told = (
        f"{count:,} held-out queries ({_kinds(report['queries']['held_out'])}) over "
        f"{report['searched']:,} of {report['chunks']:,} chunks; divided by {report['split']}."
    )
    return "## Held-out queries\n\n" + "\n".join(rows) + f"\n\n{told}"


def _general(report: Mapping[str, Any]) -> str:
    if report["general"] is None:
        why = report["general_left_out"]
        return f"## General suite\n\nNot run: {why}." if why else ""
    rows = [
        "| task | metric | base | tuned | difference | 95 % interval | p (Holm) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, task in report["general"]["tasks"].items():
        low, high = task["interval"]
        rows.append(
            f"| {name} | {task['metric']} | {task['a']:.4f} | {task['b']:.4f} | "
            f"{task['difference']:+.4f} | {low:+.4f} to {high:+.4f} | {task['p_holm']:.3f} |"
        )
    verdict = _sentence(report["general"]["verdict"])
    return "## General suite\n\n" + "\n".join(rows) + f"\n\n{verdict}"


def _data(report: Mapping[str, Any]) -> str:
    lines = [
        f"- {report['documents']:,} documents, {report['chunks']:,} chunks",
        f"- queries to train on: {_kinds(report['selected']['kinds'])}",
    ]
    lines += [f"- left out, {why}: {n:,}" for why, n in report["selected"]["left_out"].items()]
    if report["ambiguous"]:
        lines.append(f"- left out, a query that several chunks give: {report['ambiguous']:,}")
    for name, aside in report["set_aside"].items():
        lines += [f"- set aside, {name}: {one['file']}: {one['error']}" for one in aside[:5]]
        if len(aside) > 5:
            lines.append(f"- set aside, {name}: {len(aside) - 5:,} more")
    short = report["mined"]["short"]
    if short:
        lines.append(f"- queries with fewer negatives than were asked for: {short:,}")
    return "## Data\n\n" + "\n".join(lines)


def _kinds(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count:,}" for kind, count in counts.items()) or "none"


def _training(trained: Mapping[str, Any]) -> str:
    dev = ", ".join(f"{one['step']}: {one['score']:.4f}" for one in trained["dev"])
    return (
        f"## Training\n\n{trained['objective']}; {trained['train']}, learning rate "
        f"{trained['learning_rate']:g}, {trained['steps']:,} steps of {trained['batch']:,} "
        f"queries. MRR@10 on the queries by which the step is chosen, by step: {dev}. Taken: step "
        f"{trained['best_step']}."
    )


def _examples(gain: Mapping[str, Any] | None) -> str:
    if gain is None or not gain["queries"]:
        return ""
    rows = ["| query | base | tuned |", "|---|---|---|"]
    for one in gain["queries"]:
        text = " ".join(str(one["texts"][0]).split()).replace("|", "\\|")[:100]
        rows.append(f"| {text} | {one['a']:.2f} | {one['b']:.2f} |")
    return "## Queries that differ most\n\n" + "\n".join(rows)

"""The losses equal sentence-transformers 6 and FlagEmbedding in value and gradient."""

from functools import partial

import numpy as np
import pytest
import torch

from embedlm import losses
from tests.parity import ROOT, expected, facts, needs_parity

pytestmark = needs_parity
ST, FLAG = "17_losses_st", "17_losses_flag"
SYMMETRIC = {"directions": ("query_to_doc", "doc_to_query"), "partition": "per_direction"}
WEIGHTS = (1.0, 0.5, 0.25)  # the fixture does not name them; its gradient determines them
MODES = ("in_batch_negatives", "hard_negatives", "all_negatives")


def inputs(case):
    found = expected(case, "inputs.npz")
    return {name: torch.tensor(found[name]) for name in found.files}


def grouped(given, negatives):
    """The fixture's columns as the losses take them, query after query."""
    columns = [given["positive"], *given["negatives"][:negatives]]
    return torch.stack(columns, dim=1).flatten(0, 1)


def contrastive(name):
    t = 1 / float(name.rpartition("scale")[2].partition("_")[0])
    if name.startswith("gte"):
        return partial(losses.improved_info_nce, temperature=t)
    more = dict(SYMMETRIC) if "symmetric" in name else {}
    if "hardness" in name:
        more["hardness"] = next(mode for mode in MODES if f"hardness_{mode}" in name)
        more["hardness_strength"] = 5.0
    if "dot" in name:
        more["similarity"] = "dot"
    return partial(losses.info_nce, temperature=t, **more)


def guided(name):
    t = float(name.split("_")[1][1:])
    more = {}
    if "margin" in name:
        kind, value = ("absolute", 0.1) if "abs" in name else ("relative", 0.05)
        more = {"margin": value, "margin_strategy": kind}
    if "no_self" in name:
        more = {"contrast_queries": False, "contrast_positives": False}
    return partial(losses.gist, temperature=t, **more)


def st_loss(name, q, d, given):
    if name.startswith("matryoshka"):
        dims = facts(ST)["matryoshka_dims"]
        if "cosent" in name:
            return losses.matryoshka(losses.cosent, (q, d), given["similarity_labels"], dims=dims)
        weights = WEIGHTS if "weighted" in name else None
        return losses.matryoshka(losses.info_nce, (q, d), dims=dims, weights=weights)
    if name.startswith("gist"):
        columns = [given["guide_positive"]]
        columns += [given["guide_negative_0"]] if "triplets" in name else []
        guide = torch.stack(columns, dim=1).flatten(0, 1)
        return guided(name)(q, d, given["guide_query"], guide)
    if name.startswith("distill"):
        return losses.kl_distill(q, d, given["teacher_scores"], temperature=float(name[-1]))
    if name.startswith("margin_mse"):
        one = "one_negative" in name
        teacher = given["teacher_margins"][:, 0] if one else given["teacher_scores"]
        return losses.margin_mse(q, d, teacher)
    if name.split("_")[0] in ("cosent", "angle", "cosine"):
        labels = given["similarity_labels"]
        kind = "cosine_mse" if name.startswith("cosine") else name.split("_")[0]
        return getattr(losses, kind)(q, d, labels)
    return contrastive(name)(q, d)


def close(found, wanted):
    """Within 1e-4 as a whole, and each number within 1e-4 or the rounding of the largest."""
    wanted = np.asarray(wanted)
    assert np.linalg.norm(found - wanted) <= 1e-4 * np.linalg.norm(wanted)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=5e-6 * np.abs(wanted).max())


def cases(case):
    return list(facts(case)["losses"]) if ROOT else ["unset"]


@pytest.mark.parametrize("name", cases(ST))
def test_sentence_transformers(name):
    given = inputs(ST)
    wanted = facts(ST)["losses"][name]
    leaves = {k: given[k].clone().requires_grad_() for k in ("query", "positive", "negatives")}
    d = grouped(leaves, len(wanted["columns"]) - 2)
    loss = st_loss(name, leaves["query"], d, given)
    loss.backward()
    assert loss.item() == pytest.approx(wanted["loss"], rel=1e-5)
    blank = [x.grad if x.grad is not None else torch.zeros_like(x) for x in leaves.values()]
    found = torch.cat([x.flatten(0, -2) for x in blank])
    close(found.numpy(), expected(ST)[f"grad__{name}"])


@pytest.mark.parametrize("name", cases(FLAG))
def test_flag_embedding(name):
    given = inputs(FLAG)
    wanted = facts(FLAG)["losses"][name]
    where, kind = name.split("_", 2)[1:]
    options = {"temperature": float(name.split("_")[0][1:]), "similarity": "dot"}
    q = given["query"].clone().requires_grad_()
    d = given["passages"].clone().requires_grad_()
    flat, teacher = d.flatten(0, 1), given["teacher_scores"]
    if kind == "m3_kd_loss":
        loss = losses.stable_distill(q, flat, teacher, **options)
    else:
        loss = losses.info_nce(q, flat, own_group_only=where == "local", **options)
        if kind == "kl_div":
            loss = loss + losses.kl_distill(q, flat, teacher, form="cross_entropy", **options)
    loss.backward()
    assert loss.item() == pytest.approx(wanted["loss"], rel=1e-5)
    close(q.grad.numpy(), expected(FLAG)[f"grad_query__{name}"])
    assert d.grad.norm().item() == pytest.approx(wanted["grad_norm_passages"], rel=1e-4)

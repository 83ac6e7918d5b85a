"""The losses: cases by hand, invariance, clear errors, half precision."""

import math
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from embedlm import losses
from embedlm.errors import InputError

B, G, D = 4, 3, 8


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


Q, DOCS, TEACHER, LABELS = draw(B, D), draw(B * G, D, seed=1), draw(B, G, seed=2), torch.arange(B)
PAIR = draw(B, D, seed=3)
GUIDE_Q, GUIDE_D = draw(B, D + 1, seed=6), draw(B * G, D + 1, seed=7)
CALLS = {
    "info_nce": lambda q, d: losses.info_nce(q, d),
    "info_nce_own": lambda q, d: losses.info_nce(q, d, own_group_only=True),
    "info_nce_margin": lambda q, d: losses.info_nce(q, d, false_negative_margin=0.1),
    "improved_info_nce": lambda q, d: losses.improved_info_nce(q, d),
    "gist": lambda q, d: losses.gist(q, d, q.detach(), d.detach()),
    "guide_distill": lambda q, d: losses.guide_distill(q, d, GUIDE_Q, GUIDE_D),
    "triplet": lambda q, d: losses.triplet(q, d),
    "margin_mse": lambda q, d: losses.margin_mse(q, d, TEACHER),
    "kl_distill": lambda q, d: losses.kl_distill(q, d, TEACHER),
    "multi_teacher_distill": lambda q, d: losses.multi_teacher_distill(q, d, [TEACHER]),
    "cross_task_balanced": lambda q, d: losses.cross_task_balanced(q, d, q, d[::G], LABELS),
    "stable_distill": lambda q, d: losses.stable_distill(q, d, TEACHER, similarity="cosine"),
    "cosent": lambda q, d: losses.cosent(q, d[::G], LABELS),
    "angle": lambda q, d: losses.angle(q, d[::G], LABELS),
    "cosine_mse": lambda q, d: losses.cosine_mse(q, d[::G], LABELS),
    "embedding_distill": lambda q, d: losses.embedding_distill(q, d[::G].detach()),
    "alignment": lambda q, d: losses.alignment(q, d[::G]),
    "uniformity": lambda q, d: losses.uniformity(torch.cat((q, d))),
    "flops": lambda q, d: losses.flops(torch.cat((q, d)).relu()),
    "late_interaction": lambda q, d: losses.late_interaction(
        q.view(B, 2, -1), d.view(B * G, 2, -1)
    ),
    "matryoshka": lambda q, d: losses.matryoshka(losses.info_nce, (q, d), dims=[8, 4]),
    "m3_self_distill": lambda q, d: losses.m3_self_distill(q @ d.T, q @ d.T, q @ d.T),
}


def test_every_loss_is_called_here():
    assert set(losses.__all__) == {name for name in CALLS if not name.startswith("info_nce_")}


def test_importing_embedlm_leaves_torch_alone():
    code = "import sys, embedlm; assert 'torch' not in sys.modules; embedlm.losses.info_nce"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_info_nce_by_hand():
    q = torch.eye(2)
    found = losses.info_nce(q, q, temperature=1.0)
    assert found.item() == pytest.approx(math.log(1 + math.exp(-1)))
    both = ("query_to_doc", "doc_to_query")
    same = losses.info_nce(q, q, temperature=1.0, directions=both, partition="per_direction")
    assert same.item() == pytest.approx(found.item())
    improved = losses.improved_info_nce(q, q, temperature=1.0)
    assert improved.item() == pytest.approx(math.log(2 + 4 * math.exp(-1)))


def test_info_nce_keeps_its_digits_near_zero():
    found = losses.info_nce(torch.eye(2), torch.eye(2), temperature=0.1)
    assert found.item() == pytest.approx(math.log1p(math.exp(-10)), rel=1e-2)


def test_a_false_negative_is_dropped_and_the_positive_never_is():
    q = torch.eye(2)
    d = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    found = losses.info_nce(q, d, temperature=1.0, false_negative_margin=0.1)
    # query 0 loses its hard negative (1.0 > 0.6 + 0.1); query 1 loses nothing (0.8 < 1 + 0.1)
    first = math.log(math.exp(0.6) + 2) - 0.6
    second = math.log(math.exp(0.8) + 1 + math.e + math.exp(-1)) - 1
    assert found.item() == pytest.approx((first + second) / 2)


def test_cosent_counts_only_pairs_of_unequal_labels():
    a, b = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert losses.cosent(a, b, torch.tensor([1, 1])).item() == 0
    right = losses.cosent(a, b, torch.tensor([1, 0]), temperature=1.0)
    assert right.item() == pytest.approx(math.log(1 + math.exp(-1)))
    wrong = losses.cosent(a, b, torch.tensor([0, 1]), temperature=1.0)
    assert wrong.item() == pytest.approx(math.log(1 + math.e))


def test_small_cases():
    q, d = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert losses.triplet(q, d, margin=1, distance="cosine").item() == 0
    assert losses.triplet(q, d, margin=3, distance="cosine").item() == pytest.approx(2)
    assert losses.margin_mse(q, d, torch.tensor([3.0])).item() == pytest.approx(4)
    assert losses.margin_mse(q, d, torch.tensor([[5.0, 2.0]])).item() == pytest.approx(4)
    assert losses.cosine_mse(q, d[1:], torch.tensor([0.5])).item() == pytest.approx(0.25)
    assert losses.kl_distill(q, d, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(0, abs=1e-7)
    assert losses.embedding_distill(q, d[1:], metric="l2").item() == pytest.approx(math.sqrt(2))
    assert losses.embedding_distill(q, d[1:], metric="cosine").item() == pytest.approx(1)
    assert losses.flops(torch.tensor([[1.0, 2.0], [3.0, 0.0]])).item() == pytest.approx(5)
    assert losses.alignment(q, d[1:]).item() == pytest.approx(2)
    assert losses.uniformity(d).item() == pytest.approx(-4)


def test_stable_distill_masks_what_was_ranked_before():
    p = torch.tensor([1.0, 0.0]).softmax(0)
    d = torch.tensor([[2.0], [1.0]])
    found = losses.stable_distill(torch.ones(1, 1), d, torch.tensor([[1.0, 0.0]]), temperature=1.0)
    assert found.item() == pytest.approx(p[0].item() * math.log(1 + math.exp(-1)))


def test_m3_self_distill_is_the_formula():
    dense, sparse, multi = (draw(2, 4, seed=i) for i in range(3))
    both, at = dense + 0.3 * sparse + multi, torch.tensor([0, 2])
    ce = [functional.cross_entropy(x, at) for x in (dense, sparse, multi, both)]
    kd = [functional.cross_entropy(x, both.softmax(1)) for x in (dense, sparse, multi)]
    hard = (ce[0] + 0.1 * ce[1] + ce[2] + ce[3]) / 4
    soft = (kd[0] + 0.1 * kd[1] + kd[2]) / 3
    found = losses.m3_self_distill(dense, sparse, multi, temperature=1.0)
    torch.testing.assert_close(found, (hard + soft) / 2)
    plain = losses.m3_self_distill(dense, sparse, multi, temperature=1.0, distill=False)
    torch.testing.assert_close(plain, hard)


def test_late_interaction_by_hand():
    q = torch.eye(2)[None]  # two tokens
    d = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.5, 0.5]]])
    # scores 1 + 1 and 1 + 0.5
    found = losses.late_interaction(q, d)
    assert found.item() == pytest.approx(math.log(1 + math.exp(-0.5)))
    mean = losses.late_interaction(q, d, length_normalize=True)
    assert mean.item() == pytest.approx(math.log(1 + math.exp(-0.25)))


def test_late_interaction_ignores_padding():
    q, d = draw(2, 3, 4), draw(4, 5, 4, seed=1)
    wanted = losses.late_interaction(q, d)
    pad_q = torch.cat((q, torch.full((2, 1, 4), 9.0)), dim=1)
    pad_d = torch.cat((d, torch.full((4, 2, 4), 9.0)), dim=1)
    masks = torch.arange(4).expand(2, 4) < 3, torch.arange(7).expand(4, 7) < 5
    torch.testing.assert_close(losses.late_interaction(pad_q, pad_d, *masks), wanted)
    with pytest.raises(InputError, match="without a token"):
        losses.late_interaction(q, d, d_mask_MT=torch.zeros(4, 5))


def test_matryoshka_sums_the_widths():
    parts = [losses.info_nce(Q[:, :m], DOCS[:, :m]) for m in (8, 4)]
    found = losses.matryoshka(losses.info_nce, (Q, DOCS), dims=[8, 4], weights=[1, 0.5])
    torch.testing.assert_close(found, parts[0] + 0.5 * parts[1])
    mean = losses.matryoshka(losses.info_nce, (Q, DOCS), dims=[8, 4], average=True)
    torch.testing.assert_close(mean, (parts[0] + parts[1]) / 2)


UNLABELLED = [
    "info_nce",
    "info_nce_own",
    "info_nce_margin",
    "improved_info_nce",
    "gist",
    "triplet",
    "late_interaction",
    "matryoshka",
    "uniformity",
    "flops",
    "alignment",
]


@pytest.mark.parametrize("name", UNLABELLED)
def test_the_order_of_queries_does_not_matter(name):
    order = torch.tensor([2, 0, 3, 1])
    shuffled = DOCS.view(B, G, D)[order].flatten(0, 1)
    torch.testing.assert_close(CALLS[name](Q[order], shuffled), CALLS[name](Q, DOCS))


@pytest.mark.parametrize("name", ["info_nce", "info_nce_own", "improved_info_nce", "gist"])
def test_the_order_of_hard_negatives_does_not_matter(name):
    swapped = DOCS.view(B, G, D)[:, [0, 2, 1]].flatten(0, 1)
    torch.testing.assert_close(CALLS[name](Q, swapped), CALLS[name](Q, DOCS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(CALLS))
def test_half_precision_is_computed_in_float32(name, dtype):
    q, d = (x.to(dtype).requires_grad_() for x in (Q, DOCS))
    loss = CALLS[name](q, d)
    loss.backward()
    assert torch.isfinite(loss)
    assert loss.dtype == torch.float32
    assert all(x.grad is None or torch.isfinite(x.grad).all() for x in (q, d))
    if name != "m3_self_distill":  # the caller computed its scores in half precision
        wide = CALLS[name](q.detach().float(), d.detach().float())
        torch.testing.assert_close(loss.detach(), wide)


def test_autocast_does_not_halve_the_scores():
    wanted = losses.info_nce(Q, DOCS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(losses.info_nce(Q, DOCS), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.info_nce(Q, DOCS[:-1]), "11 documents for 4 queries"),
        (lambda: losses.info_nce(Q, DOCS[:, :4]), "8 wide, documents 4"),
        (lambda: losses.info_nce(Q[0], DOCS), "queries has shape"),
        (lambda: losses.info_nce(Q, DOCS, temperature=0), "temperature is 0"),
        (lambda: losses.info_nce(Q, PAIR, own_group_only=True), "at least 2"),
        (lambda: losses.info_nce(Q, DOCS, similarity="l2"), "allowed: 'cosine', 'dot'"),
        (lambda: losses.info_nce(Q, DOCS, hardness="all_negatives"), "strength 0"),
        (lambda: losses.info_nce(Q, DOCS, directions=("doc_to_query",)), "query_to_doc"),
        (lambda: losses.cosent(Q, DOCS, LABELS), "shapes differ"),
        (lambda: losses.cosent(Q, PAIR, LABELS[:2]), r"labels has shape \(2,\)"),
        (lambda: losses.margin_mse(Q, DOCS, TEACHER[:, :1]), "teacher has shape"),
        (lambda: losses.kl_distill(Q, DOCS, TEACHER.T), "teacher has shape"),
        (lambda: losses.gist(Q, DOCS, Q, PAIR), "same texts with both"),
        (lambda: losses.matryoshka(losses.info_nce, (Q, DOCS), dims=[16]), "from 1 to 8"),
        (lambda: losses.m3_self_distill(Q[:3], Q[:3], Q[:3]), "column for each"),
        (lambda: losses.uniformity(Q[:1]), "two rows"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_guide_of_one_query_teaches_as_a_teacher_of_its_scores_does():
    cosines_1G = torch.cosine_similarity(GUIDE_Q[:1, None], GUIDE_D[None, :G], dim=2)
    options = {"form": "cross_entropy", "similarity": "cosine", "teacher_temperature": 0.2}
    wanted = losses.kl_distill(Q[:1], DOCS[:G], cosines_1G, temperature=0.1, **options)
    given = {"temperature": 0.1, "guide_temperature": 0.2}
    found = losses.guide_distill(Q[:1], DOCS[:G], GUIDE_Q[:1], GUIDE_D[:G], **given)
    torch.testing.assert_close(found, wanted)
    whole = losses.guide_distill(Q[:2], DOCS[: 2 * G], GUIDE_Q[:2], GUIDE_D[: 2 * G], **given)
    assert whole > found  # the list is the batch, not the query's own documents


def test_several_teachers_are_one_with_their_mean_scores():
    other = draw(B, G, seed=5)
    found = losses.multi_teacher_distill(Q, DOCS, [TEACHER, other], weights=[3, 1])
    wanted = losses.kl_distill(Q, DOCS, 0.75 * TEACHER + 0.25 * other)
    torch.testing.assert_close(found, wanted)
    one = losses.multi_teacher_distill(Q, DOCS, [TEACHER], temperature=0.5, similarity="cosine")
    alone = losses.kl_distill(Q, DOCS, TEACHER, temperature=0.5, similarity="cosine")
    torch.testing.assert_close(one, alone)
    for bad in ([], [TEACHER.T]):
        with pytest.raises(InputError):
            losses.multi_teacher_distill(Q, DOCS, bad)
    with pytest.raises(InputError, match="2 weights"):
        losses.multi_teacher_distill(Q, DOCS, [TEACHER], weights=[1, 2])


def test_two_tasks_are_balanced():
    found = losses.cross_task_balanced(Q, DOCS, Q, PAIR, LABELS, beta=0.3)
    wanted = losses.info_nce(Q, DOCS, temperature=0.02) + 0.3 * losses.cosent(Q, PAIR, LABELS)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"own_group_only": True},
        {"directions": ("query_to_doc", "doc_to_query"), "partition": "per_direction"},
        {"hardness": "hard_negatives", "hardness_strength": 3.0},
        {
            "directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
            "false_negative_margin": 0.1,
        },
    ],
)
def test_queries_in_blocks_give_the_loss_and_gradient_of_all_at_once(monkeypatch, options):
    torch.manual_seed(0)
    q_BD, d_MD = torch.randn(11, 8), torch.randn(33, 8)
    found = []
    for rows in (4, 1024):
        monkeypatch.setattr("embedlm.losses.contrastive.ROWS", rows)
        inputs = [x.clone().requires_grad_() for x in (q_BD, d_MD)]
        loss = losses.info_nce(*inputs, temperature=0.1, **options)
        found.append((loss, *torch.autograd.grad(loss, inputs)))
    for blocks, whole in zip(*found, strict=True):
        torch.testing.assert_close(blocks, whole)

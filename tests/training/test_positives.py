"""No positive of a query is ever its negative: in a batch, across columns, for a repeated query."""

import json

import pytest
import torch
from torch.nn import functional

from embedlm import losses
from embedlm.data import Group, Records, read_records
from embedlm.schema.tuning import Batching, Data
from embedlm.training.batches import Batches
from embedlm.training.positives import equal_queries, known_positives
from embedlm.training.rows import BatchRow
from tests.training.test_gradients import gradients, stage

ROWS = (
    BatchRow(0, "q0", ("p0", "n0"), positives=frozenset({"p0"})),
    BatchRow(0, "q1", ("p1", "p0"), positives=frozenset({"p1"})),  # its negative is q0's positive
)


def ring(count=8):
    """Return records where each one's hard negative is the positive of the next."""
    return [
        {"query": f"question {i}", "pos": [f"answer {i}"], "neg": [f"answer {(i + 1) % count}"]}
        for i in range(count)
    ]


def batch_of(records, folder, **batching):
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = Batching(size=len(records), group_size=2, **batching)
    return Batches([read_records(path)], [Data(source="x")], settings, 0).next()


def vectors():
    torch.manual_seed(0)
    q_BD = torch.randn(2, 8)
    p0, p1, n0 = torch.randn(3, 8)
    return q_BD, torch.stack([p0, n0, p1, p0])


def test_the_mask_finds_a_positive_in_another_querys_column():
    assert known_positives(ROWS).tolist() == [
        [True, False, False, True],
        [False, False, True, False],
    ]
    assert equal_queries(ROWS).tolist() == [[True, False], [False, True]]


def test_info_nce_leaves_out_a_positive_that_is_anothers_hard_negative():
    q_BD, d_MD = vectors()
    masked = losses.info_nce(q_BD, d_MD, temperature=0.05, positives_BM=known_positives(ROWS))
    assert float(masked) == pytest.approx(0.0679, abs=1e-4)


def test_all_positives_of_a_repeated_query_are_known(tmp_path):
    records = [
        {"query": "q", "pos": ["a"], "neg": ["b"]},
        {"query": "q", "pos": ["b"], "neg": ["c"]},
        {"query": "r", "pos": ["c"], "neg": ["a"]},
    ]
    batch = batch_of(records, tmp_path)
    mask_BM = known_positives(batch.rows)
    documents = [text for row in batch.rows for text in row.documents]
    for row, mask_M in zip(batch.rows, mask_BM.tolist(), strict=True):
        wanted = {"q": {"a", "b"}, "r": {"c"}}[row.query]
        assert [text in wanted for text in documents] == mask_M


def test_a_query_that_is_a_positive_of_another_is_an_equal_query():
    rows = (BatchRow(0, "a", ("b",)), BatchRow(0, "b", ("c",)), BatchRow(0, "d", ("e",)))
    assert equal_queries(rows).tolist() == [
        [True, True, False],
        [True, True, False],
        [False, False, True],
    ]


def test_repeated_bare_texts_are_not_their_own_negatives():
    rows = (BatchRow(0, "a"), BatchRow(0, "b"), BatchRow(0, "a"))
    assert known_positives(rows).tolist() == [
        [True, False, True],
        [False, True, False],
        [True, False, True],
    ]


@pytest.mark.parametrize("in_batch", [True, False])
def test_negatives_are_not_drawn_from_the_positives_of_a_repeated_query(in_batch):
    """A record without negatives gets other records' positives, but none of its own query's."""
    items = [Group("q", (f"p{i}",)) for i in range(4)]
    items += [Group(f"r{i}", (f"s{i}",), (f"n{i}",)) for i in range(4)]
    records = Records("mixed", "groups", tuple(items))
    data = [Data(source="x", in_batch_negatives=in_batch)]
    batches = Batches([records], data, Batching(size=8, group_size=3), 0)
    for _ in range(8):
        for row in batches.next().rows:
            if row.query == "q":
                assert all(text[0] == "s" for text in row.documents[1:])


MASKED = {
    "info_nce": {},
    "info_nce_all": {
        "directions": ("query_to_doc", "doc_to_query", "query_to_query", "doc_to_doc")
    },
    "improved_info_nce": {},
    "gist": {"temperature": 1.0},
    "guide_distill": {"temperature": 1.0},
    "late_interaction": {},
    "m3_self_distill": {},
    "stable_distill": {},
}


def masked_loss(name, d_MD, mask_BM):
    """Return a loss whose second query's hard negative is d_MD[3], and the gradient of d_MD."""
    torch.manual_seed(1)
    q_BD, d_MD = torch.randn(2, 8), d_MD.clone().requires_grad_()
    options = {**MASKED[name], "positives_BM": mask_BM}
    if name == "late_interaction":
        loss = losses.late_interaction(q_BD[:, None], d_MD[:, None], **options)
    elif name == "m3_self_distill":
        loss = losses.m3_self_distill(*[q_BD @ d_MD.T] * 3, **options)
    elif name == "gist":
        guide = torch.eye(4)  # finds a query near its positive only, so that it drops nothing
        loss = losses.gist(q_BD, d_MD, guide[:2], guide[[0, 2, 1, 3]], **options)
    elif name == "guide_distill":
        guide = torch.eye(4)
        loss = losses.guide_distill(q_BD, d_MD, guide[:2], guide[[0, 2, 1, 3]], **options)
    elif name == "stable_distill":
        loss = losses.stable_distill(q_BD, d_MD, torch.tensor([[1.0, 0.0]] * 2), **options)
    else:
        loss = getattr(losses, name.removesuffix("_all"))(q_BD, d_MD, **options)
    loss.backward()
    return float(loss.detach()), d_MD.grad


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_document_gets_no_gradient_from_any_query(name):
    _, d_MD = vectors()
    mask_BM = torch.tensor([[True, False, False, True], [False, False, True, True]])
    loss, gradient_MD = masked_loss(name, d_MD, mask_BM)
    assert torch.isfinite(gradient_MD).all()
    if name != "stable_distill":  # there each own document is a target in its turn
        assert not gradient_MD[3].any()
        changed = d_MD.clone()
        changed[3] = 9.0
        assert masked_loss(name, changed, mask_BM)[0] == pytest.approx(loss, abs=1e-6)
    assert gradient_MD[1].any()
    assert masked_loss(name, d_MD, None)[0] != pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize("form", ["kl", "cross_entropy"])
def test_a_positive_in_the_group_leaves_what_ranks_the_group(form):
    torch.manual_seed(0)
    q_BD, d_MD = torch.randn(2, 8), torch.randn(6, 8)
    teacher_BG = torch.randn(2, 3)
    mask_BM = torch.zeros(2, 6, dtype=torch.bool)
    mask_BM[0, 2] = mask_BM[1, 5] = True  # the last of each group
    kept = torch.tensor([0, 1, 3, 4])
    for loss, options in (
        (losses.kl_distill, {"form": form}),
        (losses.margin_mse, {}),
    ):
        found = loss(q_BD, d_MD, teacher_BG, positives_BM=mask_BM, **options)
        wanted = loss(q_BD, d_MD[kept], teacher_BG[:, :2], **options)
        torch.testing.assert_close(found, wanted)
    found = losses.triplet(q_BD, d_MD, positives_BM=mask_BM)
    torch.testing.assert_close(found, losses.triplet(q_BD, d_MD[kept]))
    found = losses.info_nce(q_BD, d_MD, positives_BM=mask_BM, own_group_only=True)
    torch.testing.assert_close(found, losses.info_nce(q_BD, d_MD[kept], own_group_only=True))


def test_a_mask_of_another_shape_is_refused():
    q_BD, d_MD = vectors()
    with pytest.raises(Exception, match=r"positives_BM has shape \(2, 2\); allowed: \(2, 4\)"):
        losses.info_nce(q_BD, d_MD, positives_BM=torch.ones(2, 2))


def test_training_masks_the_positives_of_the_batch(tiny_llama, tmp_path):
    """The loss of a step is the one that is computed from the texts by hand."""
    import embedlm

    path = tmp_path / "ring.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in ring()))
    records = read_records(path)
    settings = stage(temperature=0.1)
    batching = settings.batching.model_copy(update={"group_size": 2})
    settings = settings.model_copy(update={"batching": batching})
    found, _ = gradients(tiny_llama, settings, records)
    rows = Batches([records], settings.data, batching, 0).next().rows
    model = embedlm.load(tiny_llama, "plain-mean", device="cpu")
    texts = [text for row in rows for text in row.documents]
    q_BD, d_MD = (
        functional.normalize(torch.from_numpy(model.encode(list(side))), dim=1)
        for side in ([row.query for row in rows], texts)
    )
    total = 0.0
    for index, row in enumerate(rows):
        scores = q_BD[index] @ d_MD.T / 0.1
        kept = [i for i, text in enumerate(texts) if text != row.documents[0] or i == 2 * index]
        total += float(scores[kept].logsumexp(0) - scores[2 * index])
    assert found == pytest.approx(total / len(rows), abs=1e-5)

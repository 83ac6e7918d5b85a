"""Losses as pure functions: embeddings or scores in, a scalar out.

Documents are ordered by query: d_MD with M = B * G: row i * G is the positive of query i and the
G - 1 rows after it are its hard negatives. Inputs in half precision are computed in float32.

The mask positives_BM, where a loss takes it, is true where document m is known to be a positive of
query b: a hard negative of one query may answer another, and the same query may stand in a batch
twice. Such a document is never a negative of b.
"""

from embedlm.losses.combined import cross_task_balanced, multi_teacher_distill
from embedlm.losses.contrastive import improved_info_nce, info_nce
from embedlm.losses.distillation import (
    embedding_distill,
    kl_distill,
    m3_self_distill,
    margin_mse,
    stable_distill,
)
from embedlm.losses.guided import gist, guide_distill
from embedlm.losses.multi_vector import late_interaction
from embedlm.losses.nested import matryoshka
from embedlm.losses.pairs import cosine_mse, triplet
from embedlm.losses.ranking import angle, cosent
from embedlm.losses.regularizers import alignment, flops, uniformity

__all__ = [
    "alignment",
    "angle",
    "cosent",
    "cosine_mse",
    "cross_task_balanced",
    "embedding_distill",
    "flops",
    "gist",
    "guide_distill",
    "improved_info_nce",
    "info_nce",
    "kl_distill",
    "late_interaction",
    "m3_self_distill",
    "margin_mse",
    "matryoshka",
    "multi_teacher_distill",
    "stable_distill",
    "triplet",
    "uniformity",
]

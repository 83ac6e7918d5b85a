"""Equal to sentence-transformers' `mine_hard_negatives` where the rules are the same."""

import pytest

from embedlm.mining import mine
from tests.mining.conftest import known_texts

datasets = pytest.importorskip("datasets")
util = pytest.importorskip("sentence_transformers.util")


@pytest.mark.parametrize(
    ("rules", "theirs"),
    [
        ({}, {}),
        ({"perc_pos": 0.95}, {"relative_margin": 0.05}),
        ({"margin_pos": 0.02}, {"absolute_margin": 0.02}),
        ({"abs": 0.93}, {"max_score": 0.93}),
    ],
    ids=str,
)
def test_equal_to_sentence_transformers_where_the_rules_are(model, corpus, records, rules, theirs):
    texts = list(dict.fromkeys(one["text"].strip() for one in corpus))
    inside = [one for one in records if known_texts(records, one["query"]) <= {*texts}]
    pairs = [(one["query"], text) for one in inside for text in one["positives"]]
    anchors, positives = zip(*pairs, strict=True)
    dataset = datasets.Dataset.from_dict({"anchor": anchors, "positive": positives})
    expected = util.mine_hard_negatives(
        dataset,
        model.as_sentence_transformer(),
        corpus=texts,
        num_negatives=4,
        range_max=len(texts),
        verbose=False,
        **theirs,
    )
    mined = mine(inside, corpus, model=model, k=4, filters=rules, form="sentence-transformers")
    ours = {(row["anchor"], row["positive"], row["negative"]) for row in mined.records}
    assert ours == {(row["anchor"], row["positive"], row["negative"]) for row in expected}

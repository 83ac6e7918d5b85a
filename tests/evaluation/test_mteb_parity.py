"""Every kind of task has mteb's scores on the same vectors, to the fifth digit."""

import json
from pathlib import Path

import pytest

from embedlm.evaluation.kinds import score_task
from embedlm.evaluation.subject import Subject
from embedlm.evaluation.suite import KINDS
from embedlm.evaluation.tasks import found_tasks, select
from tests.evaluation.known import Known, write

GOLDEN = json.loads(Path(__file__).with_name("mteb_scores.json").read_text())
"""What mteb 2.26.24 gives, by `mteb_scores.py`."""


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    tasks = select(None, write(folder))
    paths, _ = found_tasks(tasks, folder)
    return {name: score_task(Subject(Known()), tasks[name], paths[name]) for name in tasks}


def of_mteb(name):
    """A metric's name there."""
    return name.replace("@", "_at_")


@pytest.mark.parametrize("name", GOLDEN)
def test_scores_are_those_of_mteb(scored, name):
    metrics = scored[name].metrics
    common = [metric for metric in metrics if of_mteb(metric) in GOLDEN[name]]
    assert len(common) >= 2
    assert {metric: metrics[metric] for metric in common} == pytest.approx(
        {metric: GOLDEN[name][of_mteb(metric)] for metric in common}, abs=5.5e-6
    )


def test_every_kind_is_compared():
    kinds = {task.kind for task in select(None, "quick").values()}
    assert len(GOLDEN) == len(KINDS) == 7
    assert kinds == set(KINDS)


def test_units_are_kept_and_give_the_score(scored):
    for name, found in scored.items():
        sample = found.sample
        assert len(sample.ids) == len(sample.texts) == len(sample)
        if sample.statistic == "mean":
            assert sum(sample.columns["value"]) / len(sample) == pytest.approx(
                next(iter(found.metrics.values()))
            ), name


@pytest.mark.filterwarnings("ignore")  # of mteb's own making
def test_mteb_gives_these_scores_still():
    pytest.importorskip("mteb")
    from tests.evaluation.mteb_scores import mteb_scores

    for name, scores in mteb_scores().items():
        assert {k: scores[k] for k in GOLDEN[name]} == pytest.approx(GOLDEN[name]), name

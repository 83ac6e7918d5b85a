"""How good vectors are: suites of tasks, metrics by their definitions, and how sure it all is."""

from embedlm.evaluation.results import Result
from embedlm.evaluation.suite import suites
from embedlm.evaluation.tasks import evaluate

__all__ = ["Result", "evaluate", "suites"]

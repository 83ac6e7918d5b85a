"""How good vectors are: tasks on real data, metrics by their standard definitions."""

from embedlm.evaluation.tasks import TASKS, Result, evaluate

__all__ = ["TASKS", "Result", "evaluate"]

"""Training records made with a language model: pipelines of steps, from YAML."""

from embedlm.schema.pipeline import Pipeline, pipelines
from embedlm.synthesis.job import Synthesized, synthesize
from embedlm.synthesis.larmor import larmor

__all__ = ["Pipeline", "Synthesized", "larmor", "pipelines", "synthesize"]

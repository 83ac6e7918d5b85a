"""Text from a language model: on this machine or from an endpoint, cached on disk."""

from embedlm.generation.asking import SeededChat, ask
from embedlm.generation.cache import Cache
from embedlm.generation.conversation import Conversation, Spent, converse
from embedlm.generation.endpoint import EndpointGenerator
from embedlm.generation.generator import (
    Answer,
    FunctionGenerator,
    Generator,
    Question,
    Sampling,
)
from embedlm.generation.local import LocalGenerator
from embedlm.generation.resolve import resolve_generator

__all__ = [
    "Answer",
    "Cache",
    "Conversation",
    "EndpointGenerator",
    "FunctionGenerator",
    "Generator",
    "LocalGenerator",
    "Question",
    "Sampling",
    "SeededChat",
    "Spent",
    "ask",
    "converse",
    "resolve_generator",
]

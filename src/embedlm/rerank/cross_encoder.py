"""Folders of sentence-transformers' CrossEncoder: what each key of their files means for a score.

What a key means was read in sentence-transformers 6.2. A key or a module that is not known may
change scores, so it is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from embedlm.errors import InputError, ModelError, UnsupportedError, closest
from embedlm.jobs.json_files import inner_path, optional_json, read_json
from embedlm.persistence.layouts import ARGUMENTS, PROMPTS, TRANSFORMER_FILES
from embedlm.persistence.settings import (
    COUNT,
    FLAG,
    NOTHING,
    TEXT,
    TEXTS,
    Draft,
    Setting,
    Values,
    keep,
    one_of,
    read_settings,
)
from embedlm.schema.rerank import Method

__all__ = ["Chat", "PairSettings", "is_cross_encoder", "pair_settings"]

_SETTINGS_FILE = "config_sentence_transformers.json"
_LISTING = "modules.json"
_KIND = "CrossEncoder"
_ADVICE = "Give method= to say how a pair is read"
_ACTIVATIONS = {"Identity": False, "Sigmoid": True}
"""Whether a score is given as a probability, by the last part of the activation's name."""
_TASKS = {"sequence-classification": "scores", "text-generation": "causal_logits"}
"""What the Transformer is read for, and the name of its output."""
_ID = Values(
    "a token's id",
    lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
)
_MODALITIES = Values(
    '"text" and "message" by "forward", read from logits',
    lambda value: (
        isinstance(value, dict)
        and set(value) <= {"text", "message"}
        and all(_reads_logits(one) for one in value.values())
    ),
)
_PROCESSING = Values(
    "a mapping with arguments of the chat template",
    lambda value: isinstance(value, dict) and set(value) <= {"chat_template"},
)


def _reads_logits(modality: Any) -> bool:
    return (
        isinstance(modality, dict)
        and set(modality) <= {"method", "method_output_name", "format"}
        and modality.get("method") == "forward"
        and modality.get("method_output_name") == "logits"
        and modality.get("format", "flat") in ("flat", "structured")
    )


def _optional(*settings: Setting) -> tuple[Setting, ...]:
    """Return settings that a file may also give as null, which sentence-transformers writes."""
    return tuple(
        replace(setting, null="missing") if setting.null == "refused" else setting
        for setting in settings
    )


_MODEL = _optional(
    Setting("__version__"),
    Setting("requirements"),
    Setting("model_type", one_of(_KIND)),
    Setting("prompts", PROMPTS, keep("prompts")),
    Setting("default_prompt_name", TEXT, keep("default_prompt_name")),
    Setting("activation_fn", TEXT, keep("activation_fn")),
    Setting("keep_in_fp32_modules", TEXTS, keep("keep_in_fp32_modules")),
)
"""Keys of config_sentence_transformers.json."""
_TRANSFORMER = _optional(
    Setting("max_seq_length", COUNT, keep("max_seq_length")),
    Setting("do_lower_case", FLAG, keep("lower")),
    Setting("transformer_task", one_of(*_TASKS), keep("task")),
    Setting("modality_config", _MODALITIES, keep("modalities")),
    Setting("module_output_name", one_of(*_TASKS.values()), keep("output")),
    Setting("processing_kwargs", _PROCESSING, keep("processing")),
    Setting("unpad_inputs"),
    Setting("tokenizer_name_or_path", NOTHING),
    *ARGUMENTS,
)
"""Keys of sentence_bert_config.json."""
_LOGIT_SCORE = _optional(
    Setting("true_token_id", _ID, keep("yes")),
    Setting("false_token_id", _ID, keep("no")),
    Setting("module_input_name", one_of("causal_logits")),
)
"""Keys of the config of a LogitScore module."""
_ENTRY = tuple(map(Setting, ("idx", "name", "path", "type")))


@dataclass(frozen=True, slots=True)
class Chat:
    """How the tokenizer's chat template is called with a pair."""

    structured: bool | None = None
    """Whether a message's content is a list of parts; None: as the chat template reads it."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the chat template."""


@dataclass(frozen=True, slots=True)
class PairSettings:
    """What a folder says of the pairs that it scores."""

    method: Method
    chat: Chat | None = None
    """Where the chat template writes the pair."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None

    def prompt(self, prompt: str | None, name: str | None) -> str:
        """Return the prompt of a call: its own, the one it names, or the folder's default.

        Raises:
            InputError: no prompt of that name, or both were given.
        """
        if prompt is not None and name is not None:
            raise InputError("both prompt and prompt_name were given; give one of them")
        if prompt is not None:
            return prompt
        name = self.default_prompt if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(map(repr, self.prompts)) or "none"
            raise InputError(
                f"prompt_name {name!r} is not one of the model's; allowed: {known}."
                + closest(name, list(self.prompts))
            )
        return self.prompts[name]


def is_cross_encoder(folder: Path) -> bool:
    """Tell whether a folder's own files say that it is a CrossEncoder.

    Raises:
        UnsupportedError: they say that it is another class of sentence-transformers.
    """
    kind = optional_json(folder / _SETTINGS_FILE).get("model_type")
    if kind is None:
        entries = read_json(folder / _LISTING) if (folder / _LISTING).is_file() else []
        text = str(entries)
        if ".Pooling" in text or ".SpladePooling" in text:
            kind = "SentenceTransformer"
        elif entries:
            kind = _KIND
    if kind not in (None, _KIND):
        raise UnsupportedError(
            f"{str(folder)!r} is a model of embeddings ({kind}), which scores no pairs read "
            "together; load it with embedlm.load, or give method= to ask it all the same"
        )
    return kind == _KIND


def pair_settings(folder: Path, stored: Mapping[str, Any], plain: Method) -> PairSettings:
    """Return how a cross-encoder's folder wants its pairs read and scored.

    Args:
        folder: of the model.
        stored: its config.json as it stands.
        plain: the method of a folder that says nothing.

    Raises:
        ModelError: a file that cannot be read, or a path outside the folder.
        UnsupportedError: a module, a key or a value that cannot be honoured.
    """
    draft = Draft(folder)
    _read(draft, folder / _SETTINGS_FILE, _MODEL)
    named = next((name for name in TRANSFORMER_FILES if (folder / name).is_file()), None)
    if named is not None:
        _read(draft, folder / named, _TRANSFORMER)
    listed = _read_modules(draft)
    facts = draft.facts
    if facts.get("keep_in_fp32_modules"):
        raise UnsupportedError(
            f"{folder / _SETTINGS_FILE}: keep_in_fp32_modules is "
            f"{facts['keep_in_fp32_modules']!r}; EmbedLM runs a network in one dtype. Give "
            "method= to run it so"
        )
    fields: dict[str, Any] = {
        "template": None,
        "special_tokens_in_text": "tokens",  # as the library reads them
        "probability": _probability(folder, stored, facts.get("activation_fn")),
        "lower": facts.get("lower", False),
        "max_length": facts.get("max_seq_length"),
    }
    if "LogitScore" in draft.stages:
        fields |= {"kind": "answer", "yes": facts["yes"], "no": facts.get("no")}
    chat = _chat(facts, listed=listed)
    if chat is not None:
        fields["special_tokens"] = "none"  # a chat template writes them itself
    prompts = {name: text or "" for name, text in facts.get("prompts", {}).items()}
    default = facts.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise ModelError(
            f"{folder / _SETTINGS_FILE}: default_prompt_name is {default!r}, which is none of the "
            f"prompts ({', '.join(map(repr, prompts)) or 'there are none'})"
        )
    return PairSettings(plain.model_copy(update=fields), chat, prompts, default)


def _chat(facts: Mapping[str, Any], *, listed: bool) -> Chat | None:
    """Return how the chat template is called, where it writes the pair.

    Without modules.json the library lets a chat template do so wherever there is one.
    """
    modalities = facts.get("modalities", {} if listed else {"message": {}})
    message = modalities.get("message")
    if message is None:
        return None
    kind = message.get("format")
    options = facts.get("processing", {}).get("chat_template", {})
    return Chat(None if kind is None else kind == "structured", options)


def _read(draft: Draft, file: Path, settings: tuple[Setting, ...]) -> None:
    content = read_json(file) if file.is_file() else {}
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds {type(content).__name__}, not a mapping of settings")
    read_settings(draft, file, content, settings, _ADVICE)


def _read_modules(draft: Draft) -> bool:
    """Read modules.json and the module after the network; tell whether there is such a file.

    Raises:
        UnsupportedError: modules that are not a Transformer, or a Transformer and a LogitScore.
    """
    file = draft.folder / _LISTING
    if not file.is_file():
        return False
    entries = read_json(file)
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict) or not all(
            isinstance(entry.get(key), str) for key in ("type", "path")
        ):
            raise ModelError(f'{file} is not a list of modules, each with "type" and "path"')
        read_settings(Draft(draft.folder), file, entry, _ENTRY, _ADVICE)
        package, kind = entry["type"].split(".")[0], entry["type"].rsplit(".", 1)[-1]
        if kind not in ("Transformer", "LogitScore") or package != "sentence_transformers":
            raise UnsupportedError(
                f"{file} has the module {entry['type']!r}, which EmbedLM does not know in a "
                "cross-encoder; known: Transformer, LogitScore, of sentence_transformers"
            )
        path = inner_path(draft.folder, entry["path"], file)
        if (kind == "Transformer") != (path == draft.folder):
            raise UnsupportedError(
                f"{file} has its {kind} at {entry['path']!r}; EmbedLM reads a Transformer in the "
                "model's folder and a LogitScore in one of its own"
            )
        draft.stages.append(kind)
        if kind == "LogitScore":
            _read(draft, path / "config.json", _LOGIT_SCORE)
    _check_modules(draft, file)
    return True


def _check_modules(draft: Draft, file: Path) -> None:
    """Refuse modules that do not give one score together."""
    facts = draft.facts
    answers = draft.stages == ["Transformer", "LogitScore"]
    if not answers and draft.stages != ["Transformer"]:
        raise UnsupportedError(
            f"{file} lists {', '.join(draft.stages) or 'no modules'}; EmbedLM reads a Transformer, "
            "or a Transformer and then a LogitScore"
        )
    task = "text-generation" if answers else "sequence-classification"
    if facts.get("task", task) != task or facts.get("output", _TASKS[task]) != _TASKS[task]:
        raise UnsupportedError(
            f"{file} lists {', '.join(draft.stages)}, for which the Transformer's task is {task} "
            f"and its output {_TASKS[task]}; its own file says {facts.get('task')!r} and "
            f"{facts.get('output')!r}"
        )
    if answers and "yes" not in facts:
        raise ModelError(f"the LogitScore of {file} has no true_token_id in its config.json")


def _probability(folder: Path, stored: Mapping[str, Any], named: str | None) -> bool:
    """Return whether a score is given as a probability: what the first file says that says it.

    Raises:
        UnsupportedError: another activation than Identity and Sigmoid.
    """
    nested = stored.get("sentence_transformers")
    nested = nested if isinstance(nested, Mapping) else {}
    name = named or nested.get("activation_fn")
    name = name or stored.get("sbert_ce_default_activation_function")
    if name is None:
        return True
    last = str(name).rsplit(".", 1)[-1]
    if last not in _ACTIVATIONS or not str(name).startswith("torch."):
        raise UnsupportedError(
            f"the files of {str(folder)!r} ask for the activation {name!r}; EmbedLM has torch's "
            f"{' and '.join(_ACTIVATIONS)}. Give method='cross-encoder' for the sigmoid of the "
            "network's output"
        )
    return _ACTIVATIONS[last]

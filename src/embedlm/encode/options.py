"""The options of one call of `encode`, under our names and sentence-transformers'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from embedlm.errors import InputError, closest
from embedlm.schema.arguments import check_arguments, check_names, short

__all__ = ["AUTO", "PRECISIONS", "UNSET", "Options", "check_options", "in_role", "texts_of"]

AUTO = "auto"
"""The adapter that the recipe gives the role."""
PRECISIONS = ("float32", "float16", "int8", "uint8", "binary", "ubinary")
UNSET: Any = object()
"""An argument that was left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What one call of `encode` asks for; see there."""

    role: str | None = None
    instruction: str | Sequence[str] | None = None
    demonstrations: tuple[dict[str, str], ...] | None = None
    heads: Any = None
    dim: int | None = None
    precision: str = "float32"
    normalize: bool | None = None
    batch_tokens: int | None = None
    show_progress: bool | None = None
    max_length: int | None = None
    adapter: str | None = AUTO
    ranges: Any = None
    """(2, D) minima and maxima, of int8 and uint8; None: those that were fitted."""
    lead: str | None = None
    """Written before each text in place of the recipe's prompt (sentence-transformers' `prompt`);
    "" leaves the text bare."""
    as_tensor: bool = False
    cut_last: bool = False
    """Shorten vectors after the recipe's normalising (sentence-transformers' `truncate_dim`)."""

    @classmethod
    def of(cls, spellings: Mapping[str, Any], device: Any = None, **named: Any) -> Options:
        """Return the options of a call, in our names or in sentence-transformers'.

        Args:
            spellings: sentence-transformers' names.
            device: where the network is.
            **named: ours.

        Raises:
            InputError: a name that neither knows, a value that is not allowed, or two names of one
                option that say different things.
        """
        check_names("encode", spellings, _SPELLED)
        checked = {name: value for name, value in named.items() if name not in _CHECKED_ELSEWHERE}
        check_arguments("encode", **checked, **spellings)
        _refuse_elsewhere(spellings, device)
        return cls(**_joined(named, spellings))

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in _OURS if name not in _CHECKED_ELSEWHERE}
        check_arguments("encode", **given)
        if self.precision not in PRECISIONS:
            raise InputError(
                f"precision {self.precision!r} is not known; allowed: {', '.join(PRECISIONS)}."
                + closest(self.precision, list(PRECISIONS))
            )
        if self.ranges is not None and self.precision not in ("int8", "uint8"):
            raise InputError(
                f"ranges were given, and precision is {self.precision}, which has none; leave them "
                "out, or ask for int8 or uint8"
            )
        for name in () if self.lead is None else ("instruction", "demonstrations"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str | tuple) and not value):
                raise InputError(
                    f"prompt takes the place of the recipe's, in which {name} would have stood; "
                    f"write what the model shall read into the prompt, or leave {name} out"
                )

    def check_heads(self, kinds: Sequence[str]) -> None:
        """Refuse options of dense vectors where a call asks for none, or for a tensor of others.

        Raises:
            InputError: names the option.
        """
        if self.as_tensor and [*kinds] != ["dense"]:
            raise InputError(
                "convert_to_tensor gives one tensor of dense vectors, and the heads that are asked "
                f"for give {', '.join(kinds)}; leave it out, or ask for dense alone"
            )
        if "dense" in kinds:
            return
        asked: dict[str, Any] = {"dim": self.dim, "normalize": self.normalize}
        asked["precision"] = None if self.precision == "float32" else self.precision
        for name, value in asked.items():
            if value is not None:
                raise InputError(
                    f"{name} changes dense vectors, and the heads that are asked for give none "
                    f"({', '.join(kinds)}); leave {name} out, or add dense to the heads"
                )


_OF_SPELLINGS = ("lead", "as_tensor", "cut_last")
"""Options that only a spelling sets."""
_OURS = tuple(field.name for field in fields(Options) if field.name not in _OF_SPELLINGS)
_CHECKED_ELSEWHERE = ("demonstrations", "ranges")
_SPELLINGS = {
    "prompt": "lead",
    "convert_to_tensor": "as_tensor",
    "show_progress_bar": "show_progress",
    "normalize_embeddings": "normalize",
    "prompt_name": "role",
    "truncate_dim": "dim",
}
_WITHOUT_EFFECT = ("batch_size", "convert_to_numpy", "device")
"""Names that change no vector; `_refuse_elsewhere` refuses what cannot be honoured."""
_SPELLED = [*_OURS, *_SPELLINGS, *_WITHOUT_EFFECT]


def _joined(named: Mapping[str, Any], spellings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options under our names, each said once."""
    options = dict(named)
    if options.get("precision") is None:
        options["precision"] = "float32"
    for name, value in spellings.items():
        if name in _WITHOUT_EFFECT or value is None:
            continue
        ours = _SPELLINGS[name]
        before = named.get(ours)
        if before is not None and before != value:
            raise InputError(
                f"{ours} is {short(before)} and {name} is {short(value)}, which name one option; "
                "give one of them"
            )
        if name == "normalize_embeddings" and not value:
            continue  # there it means: no further normalising than the model's own
        options[ours] = value
        if name == "truncate_dim" and before is None:
            options["cut_last"] = True
    return options


def _refuse_elsewhere(spellings: Mapping[str, Any], device: Any) -> None:
    """Refuse a device that the network is not on, and lists of tensors."""
    asked = spellings.get("device")
    if asked is not None and device is not None:
        wanted, _, number = str(asked).partition(":")
        if wanted != device.type or (number and number != str(device.index or 0)):
            raise InputError(
                f"device is {str(asked)!r}, and the model is on {str(device)!r}; load it with "
                "device=, or leave it out"
            )
    if spellings.get("convert_to_numpy") is False and not spellings.get("convert_to_tensor"):
        raise InputError(
            "convert_to_numpy is False, which gives a list of tensors in sentence-transformers; "
            "here give convert_to_tensor=True for one tensor"
        )


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of a call before it is made.

    Args:
        options: in our names or in sentence-transformers'.

    Raises:
        InputError: as `Options.of`.
    """
    ours = {name: value for name, value in options.items() if name in _OURS}
    spellings = {name: value for name, value in options.items() if name not in _OURS}
    Options.of(spellings, **ours)


def in_role(role: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a call in a role, unless it names another as sentence-transformers."""
    return dict(options) if options.get("prompt_name") is not None else {"role": role, **options}


def texts_of(texts: Any, spellings: dict[str, Any]) -> Any:
    """Return the texts of a call, which sentence-transformers calls sentences or inputs.

    Raises:
        InputError: no texts, or texts under two names.
    """
    named: dict[str, Any] = {
        name: spellings.pop(name) for name in ("sentences", "inputs") if name in spellings
    }
    if texts is not UNSET:
        named = {"texts": texts, **named}
    if not named:  # they may stand under a name that is none of ours
        check_names("encode", spellings, _SPELLED)
    if len(named) != 1:
        raise InputError(
            "no texts were given; give a string or a list of strings"
            if not named
            else f"{' and '.join(named)} name one argument; give one of them"
        )
    return next(iter(named.values()))

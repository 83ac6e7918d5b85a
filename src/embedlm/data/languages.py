"""The language of a text, by the library py3langid."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from embedlm.errors import InputError, closest, require

__all__ = ["LANGUAGES", "check_language", "in_language", "language_of"]

_NAMES = """arabic:ar bengali:bn bulgarian:bg catalan:ca chinese:zh croatian:hr czech:cs danish:da
dutch:nl english:en estonian:et finnish:fi french:fr german:de greek:el hebrew:he hindi:hi
hungarian:hu indonesian:id italian:it japanese:ja korean:ko latvian:lv lithuanian:lt
norwegian:no persian:fa polish:pl portuguese:pt romanian:ro russian:ru serbian:sr slovak:sk
slovenian:sl spanish:es swahili:sw swedish:sv tamil:ta telugu:te thai:th turkish:tr
ukrainian:uk urdu:ur vietnamese:vi"""
LANGUAGES = dict(pair.split(":") for pair in _NAMES.split())
"""Codes of languages that texts are checked for."""
_ALIKE = ({"no", "nb", "nn", "da"}, {"id", "ms"}, {"hr", "sr", "bs"}, {"cs", "sk"})
"""Languages that short texts do not tell apart."""
_LEAST_WORDS = 4
"""Texts of fewer words have too few letters to tell their language."""
_SURE, _NEAR = 12, 3
"""A text of fewer words may be in any of the three likeliest languages."""
_WORD = re.compile(r"\w+")


def check_language(name: str) -> str:
    """Return a language's code.

    Args:
        name: English, or en.

    Raises:
        InputError: a language that texts are not checked for.
    """
    given = name.strip().lower()
    code = LANGUAGES.get(given, given)
    if code not in LANGUAGES.values():
        raise InputError(
            f"the language {name!r} is not known; allowed: "
            f"{', '.join(one.capitalize() for one in LANGUAGES)}." + closest(given, list(LANGUAGES))
        )
    return code


@lru_cache(maxsize=1)
def _identifier() -> Any:
    return require("py3langid", "synth")


def language_of(text: str) -> str:
    """Return the code of the language that a text is most likely in.

    Raises:
        MissingExtraError: py3langid is not installed.
    """
    return str(_identifier().classify(text)[0])


def in_language(text: str, name: str) -> str | None:
    """Return the code of the language that a text has instead; None where it has the one named.

    Texts of fewer than four words, and Chinese, Japanese or Thai ones without blanks of fewer than
    twelve characters, may be in any language.
    """
    wanted = check_language(name)
    if len(_WORD.findall(text)) < _LEAST_WORDS and len(text) < 3 * _LEAST_WORDS:
        return None
    ranked = [str(code) for code, _ in _identifier().rank(text)]
    near = _NEAR if len(text.split()) < _SURE else 1
    alike = any({ranked[0], wanted} <= group for group in _ALIKE)
    return None if wanted in ranked[:near] or alike else ranked[0]

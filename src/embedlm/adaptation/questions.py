"""Questions about a phrase, in the languages that they can be asked in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from embedlm.data.words import runs_of, script_of, sign_words

__all__ = ["QUESTIONS", "Words"]

QUESTIONS = {
    "en": (
        "what is {phrase}?",
        "what is known about {phrase}?",
        "how does {phrase} work?",
        "what is the effect of {phrase}?",
        "explain {phrase}",
        "when does {phrase} matter?",
    ),
    "zh": (
        "什么是{phrase}？",
        "{phrase}是什么意思？",
        "{phrase}是如何工作的？",
        "{phrase}有什么作用？",
        "请解释{phrase}",
        "关于{phrase}有哪些知识？",
    ),
    "zh-hant": (
        "什麼是{phrase}？",
        "{phrase}是什麼意思？",
        "{phrase}是如何運作的？",
        "{phrase}有什麼作用？",
        "請解釋{phrase}",
        "關於{phrase}有哪些知識？",
    ),
    "ja": (
        "{phrase}とは何ですか？",
        "{phrase}について何が知られていますか？",
        "{phrase}はどのように働きますか？",
        "{phrase}の影響は何ですか？",
        "{phrase}について説明してください",
        "{phrase}はどんなときに重要ですか？",
    ),
    "ko": (
        "{phrase} 뜻",
        "{phrase}에 대해 알려진 것은 무엇인가요?",
        "{phrase}의 원리는 무엇인가요?",
        "{phrase}의 영향은 무엇인가요?",
        "{phrase}에 대해 설명해 주세요",
        "{phrase}의 특징은 무엇인가요?",
    ),
    "th": (
        "{phrase}คืออะไร",
        "{phrase}หมายถึงอะไร",
        "{phrase}ทำงานอย่างไร",
        "{phrase}มีผลอย่างไร",
        "อธิบาย{phrase}",
        "{phrase}สำคัญอย่างไร",
    ),
}
_ENGLISH = frozenset(["the", "and", "that", "this", "with", "to", "are", "from", "their"])
"""Words of which English has many, and other languages with its letters few."""
_SHARE = 0.005
_FEWEST = 50
"""Words of a text below which these words do not tell its language."""
_KANA = 0.1
"""Share of the signs in Japanese."""
_OLD_FORMS, _NEW_FORMS = (
    frozenset("這個們來為會對時國學發電說"),
    frozenset("这个们来为会对时国学发电说"),
)


class Words:
    """What tells in which language questions about a text are asked."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.plain = self.latin = self.english = 0
        self.signs: Counter[str] = Counter()
        for text in texts:
            for run in runs_of(text):
                if isinstance(run, str):
                    self.plain += 1
                    self.latin += run[0] < "\u0250"
                    self.english += run in _ENGLISH
                else:
                    self.signs.update(run)

    def add(self, other: Words) -> None:
        """Count what another text has as well."""
        self.plain += other.plain
        self.latin += other.latin
        self.english += other.english

    def language(self, around: Words) -> str | None:
        """Return the language; None: questions cannot be asked in it.

        Args:
            around: of all texts, for one that is too short to tell.
        """
        if sign_words(self.signs.elements()) > self.plain:
            return self._of_signs()
        if 2 * self.latin < self.plain:
            return None
        told = self if self.plain >= _FEWEST else around
        return "en" if told.english >= _SHARE * told.plain else None

    def _of_signs(self) -> str | None:
        kinds: Counter[str] = Counter()
        for sign, count in self.signs.items():
            thai = "\u0e00" <= sign[0] <= "\u0e7f"
            kinds["th" if thai else script_of(sign)] += count
        if kinds["kana"] >= _KANA * (kinds["kana"] + kinds["Han"]) > 0:
            return "ja"
        most = kinds.most_common(1)[0][0]
        if most == "Han":
            old, new = (sum(self.signs[one] for one in own) for own in (_OLD_FORMS, _NEW_FORMS))
            return "zh-hant" if old > new else "zh"
        return {"th": "th", "Hangul": "ko"}.get(most)

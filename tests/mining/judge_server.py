"""A chat server on loopback that judges passages by a mark in their text."""

import re

from tests.chat_server import Server

TRUE, PART = "[answers]", "[partly]"
"""Marks of passages that answer a question, whole or in part."""


class JudgeServer(Server):
    """Answers the questions of `mining.relabel` as the marks say, or as `said` does."""

    said = None
    """Takes the prompt and the right answer; returns what is said."""

    def say(self, body):
        prompt = body["messages"][-1]["content"]
        right = self.right(prompt)
        return right if self.said is None else self.said(prompt, right)

    def right(self, prompt):
        passages = re.findall(r"^\[(\d+)\] (.*)$", prompt, re.MULTILINE)
        true = [number for number, text in passages if TRUE in text]
        other = [number for number, text in passages if TRUE not in text]
        if "<verdict>" in prompt:
            verdict = (
                f"<better>{', '.join(true)}</better><worse>{', '.join(other) or 'none'}</worse>"
            )
            return (
                "<reasoning>marks</reasoning><preference>the marked</preference>"
                f"<verdict>{verdict}</verdict>"
            )
        if "<order>" in prompt:
            known = [number for number, text in passages if "positive" in text]
            rest = [number for number in other if number not in known]
            return f"<order>{', '.join([*true, *known, *rest])}</order>"
        passage = prompt.split("Passage:\n")[1].split("\n\nWrite exactly")[0]
        if "<snippet>" in prompt:
            marked = TRUE in passage or PART in passage
            return f"<snippet>{passage if marked else 'none'}</snippet>"
        return f"<score>{min(10, len(passage.split()))}</score>"

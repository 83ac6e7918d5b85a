"""A chat server on loopback that writes queries and examples, well or as badly as a test asks."""

import json
import re

from tests.chat_server import Server

PROSE = "Of course! Here is a fine example for you."


class WriterServer(Server):
    """Answers what the built-in pipelines ask; `moods` says how often it answers badly."""

    def __init__(self, script=(), delay=0.0, moods=None, fails=None):
        super().__init__(script, delay)
        self.fails = fails
        """A text in prompts that are never answered."""
        self.moods = dict(moods or {})
        """(text of a prompt -> mood): refuses, prose, cut, copy, echo, german."""

    def step(self, body):
        """Return what becomes of a request that the script says nothing of."""
        failed = self.fails is not None and self.fails in body["messages"][0]["content"]
        return 500 if failed else 200

    def mood(self, body):
        prompt = body["messages"][0]["content"]
        return next((mood for text, mood in self.moods.items() if text in prompt), "")

    def say(self, body):
        prompt, seed, mood = body["messages"][-1]["content"], body["seed"], self.mood(body)
        repaired = len(body["messages"]) > 1
        if mood == "refuses":
            return "I'm sorry, but I cannot help with that."
        if mood == "prose" or (mood == "prose once" and not repaired):
            return PROSE
        if "JSON Schema" in prompt or repaired:
            return self.json_for(body["messages"][0]["content"], seed, mood)
        passage = prompt.rpartition("Passage: ")[2].partition("\n")[0]
        words = re.findall(r"\w+", passage)
        if mood == "copy":
            return passage
        return f" what about {' '.join(words[:3])} {seed % 1000}"

    def json_for(self, prompt, seed, mood):
        if '"tasks"' in prompt:
            names = [f"find {one}{seed} for a{seed}{one} person{seed}" for one in ("talk", "song")]
            return "```json\n" + json.dumps({"tasks": names}) + "\n```"
        if mood == "echo":
            return prompt[prompt.rindex('{"') :]
        text = f"The document number {seed} says what the reader wanted to know about it."
        if mood == "german":
            text = "Dieses Dokument sagt dem Leser genau, was er davon immer wissen wollte."
        worse = f"Another text, {seed}, is near it and leaves out what was asked for by most."
        found = {"query": f"what is the number {seed} of", "positive": text, "hard_negative": worse}
        return "Here you are: " + json.dumps(found)

    def more(self, body, answer):
        choice = answer["choices"][0]
        text = choice["message"]["content"]
        answer["usage"] = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        if body.get("logprobs"):
            size = -0.01 * (body["seed"] % 100) - 0.1
            choice["logprobs"] = {"content": [{"token": "a", "logprob": size, "top_logprobs": []}]}
        cut = self.mood(body)
        if cut == "cut" or (cut == "cut once" and body["max_tokens"] <= 512):
            choice["finish_reason"] = "length"
            choice["message"]["content"] = text[: len(text) // 2]

"""Write the tuned model in bfloat16 with its card: what `embedlm.load()` opens.

    python export_tuned.py WORK/tuned/model --scores WORK/scores.json -o builtin/tuned

The scores are those of `embedlm.evaluate`, by the model's name and the task.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import embedlm

CARD = Path(__file__).with_name("tuned_card.md")


def main() -> None:
    """Write the model's folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    settings = parser.parse_args()
    scores = json.loads(settings.scores.read_text(encoding="utf-8"))
    tasks = list(next(iter(scores.values())))
    head = ["| Model | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|"]
    rows = [
        f"| {name} | " + " | ".join(f"{found[task]:.3f}" for task in tasks) + " |"
        for name, found in scores.items()
    ]
    model = embedlm.load(settings.model, dtype="bfloat16")
    model.save_pretrained(settings.output)
    card = CARD.read_text(encoding="utf-8").replace("{scores}", "\n".join([*head, *rows]))
    (settings.output / "README.md").write_text(card, encoding="utf-8")
    size = sum(path.stat().st_size for path in settings.output.rglob("*") if path.is_file())
    print(f"{settings.output}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

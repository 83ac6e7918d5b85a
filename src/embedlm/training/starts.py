"""What a plan does before its first stage: a projection started by ridge regression.

The result lies in a folder like a stage's, with a model that the first stage starts from.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from embedlm.data import Group, Pair, Records
from embedlm.embedder import Embedder
from embedlm.encode.executor import Executor
from embedlm.errors import InputError, JobError
from embedlm.jobs import disk_errors
from embedlm.jobs.atomic import write_file
from embedlm.jobs.json_files import write_json
from embedlm.jobs.manifest import facts_digest, json_values
from embedlm.loader import fitted_tokens, load, load_readout
from embedlm.persistence import derive_recipe, layout_folder
from embedlm.readout import Readout
from embedlm.readout.new_projection import asked_projection, linear_projection
from embedlm.readout.projection import projected_width
from embedlm.schema.plan import Plan, Ridge
from embedlm.schema.recipe import Recipe
from embedlm.schema.tuning import Data
from embedlm.training.finished import fingerprint, is_finished
from embedlm.training.plan import shown_name
from embedlm.training.ridge import Moments, is_held_out, solve
from embedlm.training.teacher_vectors import TeacherVectors, identity_of
from embedlm.training.trackers import EventHandler

__all__ = ["RidgeStart", "ridge_teacher", "wants_ridge"]

BLOCK = 1024
"""Texts that are embedded together."""
SAVED_EVERY = 30.0
"""Seconds between two times that the sums are written."""
_MODEL, _SUMS = "model", "moments.npz"
Block = tuple[tuple[str, ...], str | None, str | None]


def wants_ridge(recipe: Recipe, model: str) -> bool:
    """Tell whether a recipe's projection is to be started by ridge regression.

    Raises:
        ModelError: the model's files cannot be read.
    """
    asked = asked_projection(recipe)
    starts = asked is not None and asked.init == "ridge"
    return starts and projected_width(layout_folder(model)) is None


def ridge_teacher(plan: Plan) -> str:
    """Return the name of the model whose vectors a projection learns.

    Raises:
        InputError: nothing names one.
    """
    losses = [loss for stage in plan.stages for loss in stage.objective]
    named = [str(loss.options["teacher"]) for loss in losses if "teacher" in loss.options]
    own = plan.ridge.teacher if plan.ridge is not None else None
    teacher = own or plan.teacher or next(iter(named), None)
    if teacher is None:
        raise InputError(
            "a projection with init: ridge learns a teacher's vectors; name the model: "
            "ridge: {teacher: MODEL}"
        )
    return teacher


@dataclass(frozen=True, slots=True)
class RidgeStart:
    """All that a projection's start depends on."""

    settings: Ridge
    base: tuple[str, Recipe]
    """The model, and the recipe that asks for the projection."""
    teacher: str
    """Folder or hub id."""
    sets: Sequence[Records]
    data: Sequence[Data]
    lm_head: bool
    """Whether a later stage needs the language-model head."""
    save_dtype: str | None
    device: Any
    precision: str

    def run(self, folder: Path, report: EventHandler) -> str:
        """Write the model with its projection, unless that is done; return its folder.

        Raises:
            InputError: texts from which nothing can be learnt.
            JobError: the folder holds the start of another plan; a damaged cache; a full disk.
        """
        manifest = self._manifest()
        if is_finished(folder, manifest):
            report("resume", {"stage": "ridge", "finished": True})
            return str(folder / _MODEL)
        model, recipe = self.base
        asked = asked_projection(recipe)
        assert asked is not None
        report("stage", {"stage": "ridge", "model": shown_name(model)})
        with disk_errors(folder, "Make room and run the same command again"):
            folder.mkdir(parents=True, exist_ok=True)
        bare = recipe.override({"heads": ["dense"], "dim": None, "normalize": False})
        options: dict[str, Any] = {"device": self.device, "dtype": "float32"}
        readout = load_readout(model, bare, lm_head=self.lm_head, **options)
        readout = readout.with_statistics(fitted_tokens(model, readout))
        fitted, held_out = self._sums(readout, asked.width, folder, manifest, report)
        found = solve(fitted, held_out, self.settings.strengths, bias=asked.bias)
        bias = None if found.bias_O is None else torch.from_numpy(found.bias_O).float()
        projection = linear_projection(torch.from_numpy(found.weight_IO.T).float(), bias)
        parts = replace(
            readout.parts,
            projection=projection.to(readout.backbone.device),
            sought=readout.parts.sought | {"projection"},
        )
        whole = Readout(readout.backbone, recipe, parts, statistics=readout.statistics)
        embedder = Embedder(whole, Executor(readout.backbone), name=model)
        embedder.save_pretrained(folder / _MODEL, save_dtype=self.save_dtype)
        summary = {
            "texts": int(fitted.count + held_out.count),
            "held_out": int(held_out.count),
            "strength": found.strength,
            "explained": found.explained,
        }
        write_json(folder / "summary.json", summary)
        write_json(folder / "manifest.json", json_values(manifest))
        (folder / _SUMS).unlink(missing_ok=True)
        report("ridge", {"stage": "ridge", **summary})
        return str(folder / _MODEL)

    def _manifest(self) -> dict[str, Any]:
        model, recipe = self.base
        stored = {} if self.precision == "float32" else {"precision": self.precision}
        return stored | {
            "ridge": self.settings.model_dump(mode="json"),
            "model": identity_of(model),
            "recipe": recipe.model_dump(mode="json"),
            "teacher": identity_of(self.teacher, derive_recipe(self.teacher)),
            "data": [fingerprint(records) for records in self.sets],
            "instructions": [[one.instruction, one.document_instruction] for one in self.data],
            "save_dtype": self.save_dtype,
        }

    def _sums(
        self,
        readout: Readout,
        width: int,
        folder: Path,
        manifest: dict[str, Any],
        report: EventHandler,
    ) -> tuple[Moments, Moments]:
        """Return the sums over the texts to learn from and over those held out."""
        student = Embedder(readout, Executor(readout.backbone), name=self.base[0])
        vectors = self._teacher_vectors(folder.parent / "teacher-vectors", manifest["teacher"])
        key = facts_digest(manifest)
        blocks = list(_blocks(self.sets, self.data))
        begin, fitted, held_out = _read_sums(folder / _SUMS, key, readout.dense_width, width)
        written = time.monotonic()
        for done, (texts, role, instruction) in enumerate(blocks[begin:], begin + 1):
            x_BI = student.encode(
                texts,
                role=role,
                instruction=instruction,
                max_length=self.settings.max_length,
                show_progress=False,
            )
            y_BO = vectors.block(texts, role)
            if y_BO.shape[1] != width:
                raise InputError(
                    f"the projection has the width {width}, and the vectors of the teacher "
                    f"{shown_name(self.teacher)!r} have {y_BO.shape[1]}; give that width"
                )
            apart = np.array([is_held_out(text, self.settings.held_out) for text in texts])
            held_out.add(x_BI[apart], y_BO[apart])
            fitted.add(x_BI[~apart], y_BO[~apart])
            report("start", {"stage": "ridge", "step": done, "of": len(blocks)})
            if time.monotonic() - written > SAVED_EVERY or done == len(blocks):
                _write_sums(folder / _SUMS, key, done, fitted, held_out)
                written = time.monotonic()
        return fitted, held_out

    def _teacher_vectors(self, folder: Path, identity: str) -> TeacherVectors:
        loaded: list[Embedder] = []

        def encode(texts: Sequence[str], role: str | None) -> npt.NDArray[np.float32]:
            if not loaded:
                loaded.append(load(self.teacher, device=self.device, dtype=self.precision))
            found: npt.NDArray[np.float32] = loaded[0].encode(
                list(texts), role=role, heads=["dense"], show_progress=False
            )
            return found

        return TeacherVectors(folder, identity, encode)


def _blocks(sets: Sequence[Records], data: Sequence[Data]) -> Iterator[Block]:
    """Yield the texts of all records once, those of one role and instruction together."""
    groups: dict[tuple[str | None, str | None], dict[str, None]] = {}
    for records, settings in zip(sets, data, strict=True):
        for item in records.items:
            for text, role in _texts_of(item):
                own = settings.document_instruction if role == "document" else settings.instruction
                groups.setdefault((role, own), {})[text] = None
    for (role, own), found in groups.items():
        texts = tuple(found)
        for start in range(0, len(texts), BLOCK):
            yield texts[start : start + BLOCK], role, own


def _texts_of(item: Any) -> list[tuple[str, str | None]]:
    """Return the texts of a record and their roles, as in training."""
    if isinstance(item, Group):
        documents = (*item.positives, *item.negatives)
        return [(item.query, "query"), *((text, "document") for text in documents)]
    if isinstance(item, Pair):
        return [(item.first, None), (item.second, None)]
    return [(str(item), None)]


def _write_sums(file: Path, key: str, done: int, fitted: Moments, held_out: Moments) -> None:
    arrays: dict[str, Any] = {"key": np.array(key), "done": np.array(done)}
    arrays |= {**fitted.arrays("fitted_"), **held_out.arrays("held_out_")}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with disk_errors(file, "Make room and run the same command again"):
        write_file(file, lambda handle: handle.write(buffer.getvalue()))


def _read_sums(file: Path, key: str, into: int, out: int) -> tuple[int, Moments, Moments]:
    """Return how many blocks are done and the sums over them; none where nothing is there.

    Raises:
        JobError: they are of another plan, or damaged.
    """
    if not file.is_file():
        return 0, Moments.zero(into, out), Moments.zero(into, out)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if str(arrays["key"]) != key:
                raise JobError(
                    f"{file} is of another plan or of other data. Give another output folder, or "
                    "--restart to start again"
                )
            parts = Moments.of_arrays(arrays, "fitted_"), Moments.of_arrays(arrays, "held_out_")
            return int(arrays["done"]), *parts
    except (ValueError, OSError, KeyError, EOFError) as error:
        raise JobError(
            f"{file} is empty or damaged ({error}); remove it and run the same command again"
        ) from error

"""A recipe carried out: texts, data, vocabulary, shards, pretraining, model file, samples. What stands is not redone.

OUTPUT/texts          what the recipe wrote itself, a document a line
OUTPUT/data           as phial data run leaves it, report.html among it
OUTPUT/vocabulary     the tokenizer
OUTPUT/shards         token shards, a folder a phase, and validation
OUTPUT/pretrain       the run: metrics, checkpoints, model/
OUTPUT/NAME-TYPE.gguf the model file
OUTPUT/samples.json   what it said
OUTPUT/manifest.json  what was made from what
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from phial.data.mixing import mix
from phial.data.python_docs import python_docs
from phial.data.run import run_stages
from phial.data.sources import find_files
from phial.data.vocabulary import texts_of, write_vocabulary
from phial.data.word_problems import word_problems
from phial.errors import PhialError
from phial.gguf import convert, quantize
from phial.gguf.mixes import find_recipe
from phial.gguf.open_tokenizer import open_tokenizer
from phial.recipe.pretraining import run_pretraining
from phial.recipe.recipe import PYTHON_DOCS, WORD_PROBLEMS, Resolved
from phial.recipe.samples import write_samples
from phial.recipe.stages import Say, Stages

HELD_OUT = "word-problems-held-out.jsonl"
SAMPLES = "samples.json"
_TOKENIZER = ("tokenizer.json", "tokenizer.model")


def make(resolved: Resolved, say: Say, *, workers: int = 1) -> dict[str, Any]:
    """Carry out a recipe; the stages of its manifest. The same call goes on where one was stopped.

    Raises PhialError as the stages do, and under torchrun: the stages but one are work for one process.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise PhialError("a recipe is one process's work", "torchrun goes with phial train pretrain")
    r = resolved
    if r.recipe.vocabulary is None:
        open_tokenizer(str(r.tokenizer))  # said now, not after the data stages
    r.output.mkdir(parents=True, exist_ok=True)
    stages = Stages(r.output, say)
    if r.recipe.texts.python_docs is not None or r.recipe.texts.word_problems is not None:
        settings = r.recipe.texts.model_dump(mode="json") | {"python": platform.python_version()}
        stages.make("texts", settings, [], lambda: sorted(r.texts.glob("*.jsonl")), partial(_write_texts, r))
    kept = _data(r, stages, workers)
    documents = sorted((kept / "kept").iterdir())
    if r.recipe.vocabulary is not None:
        settings = r.recipe.vocabulary.model_dump(mode="json")
        stages.make("vocabulary", settings, documents, lambda: _tokenizer(r), partial(_train_vocabulary, r, kept))
    settings = r.mix.model_dump(mode="json", exclude={"tokenizer"})
    shards = partial(_mix, r, kept, workers)
    stages.make("mix", settings, [*documents, *_tokenizer(r)], lambda: r.shards.glob("*/index.json"), shards)
    model = r.output / "pretrain" / "model"
    inputs = [*sorted(r.shards.glob("*/index.json")), *_tokenizer(r)]
    stages.make("pretrain", _pretrain_settings(r), inputs, lambda: _weights(model), partial(_pretrain, r, say))
    stages.make("gguf", {"type": r.recipe.gguf.type}, _weights(model), lambda: [r.gguf], partial(_write_gguf, r, model))
    held_out = r.texts / HELD_OUT
    asked = [r.gguf, *([held_out] if held_out.is_file() else [])]
    samples = partial(write_samples, r.gguf, r.recipe.samples, held_out, r.output / SAMPLES)
    settings = r.recipe.samples.model_dump(mode="json")
    stages.make("samples", settings, asked, lambda: [r.output / SAMPLES], samples)
    return stages.made


def _write_texts(r: Resolved) -> dict[str, Any]:
    shutil.rmtree(r.texts, ignore_errors=True)
    r.texts.mkdir(parents=True)
    numbers = {}
    if r.recipe.texts.python_docs is not None:
        numbers[PYTHON_DOCS] = _write_lines(r.texts / f"{PYTHON_DOCS}.jsonl", ({"text": t} for t in python_docs()))
    if (wanted := r.recipe.texts.word_problems) is not None:
        problems, held_out = word_problems(wanted.count, wanted.held_out, wanted.seed)
        texts = ({"text": problem.text} for problem in problems)
        numbers[WORD_PROBLEMS] = _write_lines(r.texts / f"{WORD_PROBLEMS}.jsonl", texts)
        _write_lines(r.texts / HELD_OUT, ({"prompt": p.prompt, "answer": p.answer} for p in held_out))
    return {"documents": numbers}


def _write_lines(path: Path, rows: Iterable[Mapping[str, str]]) -> int:
    partial_path = path.with_name(path.name + ".partial")
    count = 0
    with open(partial_path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
            count += 1
    os.replace(partial_path, path)
    return count


def _data(r: Resolved, stages: Stages, workers: int) -> Path:
    """Run the data stages; the folder of the last."""
    folder = r.output / "data"
    settings = r.data.model_dump(mode="json")
    for source in settings["sources"]:
        del source["paths"]
    inputs = [file.path for file in find_files(r.data.sources, r.file.parent)]
    work = partial(_run_data, r, folder, workers)
    stages.make("data", settings, inputs, lambda: folder.glob("*/stage.json"), work)
    return folder / str(stages.made["data"]["metrics"]["last"])


def _run_data(r: Resolved, folder: Path, workers: int) -> dict[str, Any]:
    run = run_stages(r.data, r.file, folder, workers=workers)
    assert run.last is not None
    counts = [{key: stage[key] for key in ("name", "documents_in", "kept", "dropped")} for stage in run.results]
    return {"last": run.last.name, "stages": counts}


def _train_vocabulary(r: Resolved, kept: Path) -> dict[str, Any]:
    assert r.recipe.vocabulary is not None
    wanted = r.recipe.vocabulary
    shutil.rmtree(r.tokenizer, ignore_errors=True)
    metadata = write_vocabulary(texts_of([kept]), wanted.size, r.tokenizer, wanted.kind, pre=wanted.pre)
    return {"tokens": len(metadata["tokenizer.ggml.tokens"])}


def _tokenizer(r: Resolved) -> list[Path]:
    return [path for name in _TOKENIZER if (path := r.tokenizer / name).is_file()]


def _mix(r: Resolved, kept: Path, workers: int) -> dict[str, Any]:
    return mix(kept, r.mix, r.shards, workers=workers).json()


def _pretrain_settings(r: Resolved) -> dict[str, Any]:
    """All but the paths."""
    table = r.pretrain.model_dump(mode="json", exclude={"tokenizer", "validation", "micro_batch"})
    return {**table, "phases": [{k: v for k, v in phase.items() if k != "data"} for phase in table["phases"]]}


def _pretrain(r: Resolved, say: Say) -> dict[str, Any]:
    return run_pretraining(r.pretrain, r.output / "pretrain", say)


def _weights(model: Path) -> list[Path]:
    return [model / "config.json", *sorted(model.glob("*.safetensors"))]


def _write_gguf(r: Resolved, model: Path) -> dict[str, Any]:
    kind = r.recipe.gguf.type
    if kind.lower() in convert.GGUF_TYPES:
        convert.hf_to_gguf(model, r.gguf, kind.lower())
    else:
        with quantize.open_source(model) as source:
            quantize.write(quantize.plan(source, find_recipe(kind)), r.gguf)
    return {"file": r.gguf.name, "bytes": r.gguf.stat().st_size}

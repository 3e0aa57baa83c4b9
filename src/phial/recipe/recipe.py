"""A recipe: one TOML file from text to a model file, made of the stages' own tables.

    name = "tiny"
    [texts.python_docs]         text that is made on the spot, each a source of its own
    [data]                      as for phial data run, without [mix]
    [vocabulary]                or tokenizer = "folder"
    [mix]                       as the [mix] of phial data run, without tokenizer
    [pretrain]                  as for phial train pretrain, without tokenizer, phases and validation
    [gguf]                      the type of the file
    [samples]                   what the model is asked in the end

Paths are beside the file. What a table leaves out here, the recipe fills in: the phases that were mixed are trained on,
once each, since the mixture writes repeats out.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from phial.config import PRESETS, ModelConfig
from phial.config_file import checked, read_config
from phial.data.config import RunConfig
from phial.data.mixture import MixConfig
from phial.data.python_docs import LICENCE as PYTHON_LICENCE
from phial.data.word_problems import LICENCE as PROBLEMS_LICENCE
from phial.errors import PhialError
from phial.gguf.convert import GGUF_TYPES
from phial.gguf.mixes import find_recipe
from phial.tokenizer.train import Kind
from phial.train.pretrain import PretrainConfig, model_config

_FROZEN = ConfigDict(frozen=True, extra="forbid")
PYTHON_DOCS, WORD_PROBLEMS = "python-docs", "word-problems"  # what their sources are called


class PythonDocsConfig(BaseModel):
    """The standard library's documentation; nothing to choose."""

    model_config = _FROZEN


class WordProblemsConfig(BaseModel):
    """Word problems from a grammar."""

    model_config = _FROZEN

    count: int = Field(gt=0)
    held_out: int = Field(0, ge=0, description="problems in no training text, asked in the end")
    seed: int = Field(0, ge=0)


class TextsConfig(BaseModel):
    """Texts that need no download."""

    model_config = _FROZEN

    python_docs: PythonDocsConfig | None = None
    word_problems: WordProblemsConfig | None = None


class VocabularyConfig(BaseModel):
    """A vocabulary of the recipe's own, trained on what the data stages kept."""

    model_config = _FROZEN

    size: int = Field(gt=0)
    kind: Kind = "byte-level"
    pre: str = "qwen2"


class GGUFConfig(BaseModel):
    """The model file."""

    model_config = _FROZEN

    type: str = Field("q8_0", description="f32, f16, bf16, or a type of phial quantize")


class SamplesConfig(BaseModel):
    """Texts for the model to continue, greedily."""

    model_config = _FROZEN

    prompts: tuple[str, ...] = ()
    max_tokens: int = Field(48, gt=0)


class Recipe(BaseModel):
    """A recipe as it is written; the tables of stages are checked by resolve(), once they are filled in."""

    model_config = _FROZEN

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    about: str = ""
    texts: TextsConfig = TextsConfig()
    data: dict[str, Any] = {}
    tokenizer: Path | None = Field(None, description="a Hugging Face folder")
    vocabulary: VocabularyConfig | None = None
    mix: dict[str, Any]
    pretrain: dict[str, Any]
    gguf: GGUFConfig = GGUFConfig()
    samples: SamplesConfig = SamplesConfig()

    @model_validator(mode="after")
    def _one_vocabulary(self) -> Recipe:
        if (self.tokenizer is None) == (self.vocabulary is None):
            raise ValueError("the vocabulary is either a table [vocabulary] or a tokenizer's folder")
        return self


class Resolved(NamedTuple):
    """A recipe for one output folder: every stage's configuration, whole and checked.

    Attributes:
        model: the shape; the size of a tokenizer that was there before is the preset's here, or 1.
    """

    recipe: Recipe
    file: Path
    output: Path
    data: RunConfig
    tokenizer: Path
    mix: MixConfig
    pretrain: PretrainConfig
    model: ModelConfig

    @property
    def texts(self) -> Path:
        return self.output / "texts"

    @property
    def shards(self) -> Path:
        return self.output / "shards"

    @property
    def gguf(self) -> Path:
        return self.output / f"{self.recipe.name}-{self.recipe.gguf.type.lower()}.gguf"

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.model.tensor_shapes().values())


def resolve(file: Path, output: Path) -> Resolved:
    """Read a recipe and check all of it, so that no mistake is found after hours. Raises PhialError naming the key."""
    recipe = read_config(file, Recipe)
    if recipe.gguf.type.lower() not in GGUF_TYPES:
        find_recipe(recipe.gguf.type)
    output = output.absolute()
    tokenizer = output / "vocabulary" if recipe.tokenizer is None else (file.parent / recipe.tokenizer).absolute()
    data = checked(RunConfig, {**recipe.data, "sources": _sources(recipe, output)}, f"{file} [data]")
    if data.mix is not None:
        raise PhialError(f"{file}: [data] has a mix", "a recipe's mixture is a table of its own, [mix]")
    mix = checked(MixConfig, {"tokenizer": str(tokenizer), **recipe.mix}, f"{file} [mix]").beside(file)
    pretrain = checked(PretrainConfig, _pretrain_table(recipe, mix, tokenizer, output), f"{file} [pretrain]")
    shape = model_config(pretrain, _n_vocab(recipe, pretrain))
    return Resolved(recipe, file, output, data, tokenizer, mix, pretrain.beside(file), shape)


def _n_vocab(recipe: Recipe, pretrain: PretrainConfig) -> int:
    """Of the vocabulary that will be trained, or of the preset; the tokenizer, not opened here, has the last word."""
    if recipe.vocabulary is not None:
        return recipe.vocabulary.size
    return PRESETS[pretrain.preset].n_vocab if pretrain.preset in PRESETS else 1


def _sources(recipe: Recipe, output: Path) -> list[Any]:
    """The recipe's sources, and one for each of its own texts."""
    made: list[dict[str, Any]] = []
    if recipe.texts.python_docs is not None:
        made.append({"name": PYTHON_DOCS, "licence": PYTHON_LICENCE})
    if recipe.texts.word_problems is not None:
        made.append({"name": WORD_PROBLEMS, "licence": PROBLEMS_LICENCE, "synthetic": True})
    texts = [{**source, "paths": [str(output / "texts" / f"{source['name']}.jsonl")]} for source in made]
    return [*recipe.data.get("sources", []), *texts]


def _pretrain_table(recipe: Recipe, mix: MixConfig, tokenizer: Path, output: Path) -> dict[str, Any]:
    """The [pretrain] table with what the recipe knows. Raises PhialError where the table says it, too."""
    shards = output / "shards"
    filled = {
        "name": recipe.name,
        "tokenizer": tokenizer,
        "phases": [{"name": phase.name, "data": shards / phase.name} for phase in mix.phases],
        **({"validation": shards / "validation"} if mix.validation else {}),
    }
    twice = sorted(filled.keys() & recipe.pretrain.keys())
    if twice:
        raise PhialError(f"[pretrain] has {twice[0]}, which the recipe fills in", "leave it out")
    return {**recipe.pretrain, **filled}

"""The mixtures: tensor by tensor what llama.cpp chose, recorded by tests/golden/record_llama_quantize.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.golden.record_llama_quantize import OVERRIDES, config_of, folded

from phial.errors import ArgumentError
from phial.gguf.blocks import GGMLType
from phial.gguf.mixes import RECIPES, choose_types, find_recipe, find_type

RECORDED = json.loads((Path(__file__).parents[1] / "golden" / "quantize_types.json").read_text())["cases"]
TINY = config_of({"architecture": "llama", "n_layer": 22})


def chosen(case: dict[str, Any], recipe: str, **options: Any) -> dict[str, str]:
    types = choose_types(recipe, config_of(case["shape"]), **options)
    return folded({name: kind.name for name, kind in types.items()})


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["case"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_tensor_has_the_type_that_llama_cpp_gives_it(case: dict[str, Any], recipe: str) -> None:
    assert chosen(case, recipe) == case[recipe]
    with_matrix = case.get(f"{recipe} with matrix", case[recipe])
    assert chosen(case, recipe, importance=True) == with_matrix


def test_the_recording_holds_what_it_is_there_to_show() -> None:
    by_name = {case["case"]: case for case in RECORDED}
    assert "Q4_0 with matrix" in by_name["phi3, 32 layers"]  # a matrix changes types
    assert by_name["phi3, width 64"]["Q4_K_M"]["attn_output"].startswith("Q5_0")  # blocks of 256 do not fit
    assert "F16" in by_name["llama, width 48"]["Q4_0"]["attn_q"]  # nor those of 32
    wide = (
        by_name["llama, 80 layers"]["Q3_K_M"]["attn_v"],
        by_name["llama, 80 layers, no shared heads"]["Q3_K_M"]["attn_v"],
    )
    assert wide[0] != wide[1]


@pytest.mark.parametrize("what", OVERRIDES)
def test_types_asked_for_are_used_as_llama_cpp_uses_them(what: str) -> None:
    options = {
        {"output_tensor_type": "output_type", "token_embedding_type": "embedding_type"}[key]: kind
        for key, kind in OVERRIDES[what].items()
    }
    cases = [case for case in RECORDED if f"Q4_K_M {what}" in case]
    assert {case["shape"]["tie"] for case in cases} == {True, False}
    for case in cases:
        assert chosen(case, "Q4_K_M", **options) == case[f"Q4_K_M {what}"], case["case"]


def test_vectors_have_no_type_of_their_own() -> None:
    assert not [name for name in choose_types("Q4_K_M", TINY) if "norm" in name or name.endswith("bias")]


def test_a_type_asked_for_whose_blocks_do_not_fit_is_refused() -> None:
    narrow = config_of({"architecture": "llama", "n_embd": 64})
    with pytest.raises(ArgumentError, match=r"output.weight cannot be Q6_K: its rows of 64 do not fill blocks of 256"):
        choose_types("Q8_0", narrow, output_type=GGMLType.Q6_K)


def test_names_are_read_in_any_case_and_unknown_ones_listed() -> None:
    assert find_recipe("q4_k_m") == "Q4_K_M" and find_type("q6_k") == GGMLType.Q6_K
    with pytest.raises(ArgumentError, match="type 'Q4_K' is no recipe") as caught:
        find_recipe("Q4_K")
    assert "Q4_K_M" in caught.value.hint
    with pytest.raises(ArgumentError, match="no tensor type 'IQ2_XS'"):
        find_type("IQ2_XS")

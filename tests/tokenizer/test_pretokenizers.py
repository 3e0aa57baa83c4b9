"""Where each family of pre-tokenizers cuts, on texts that tell the families apart."""

from __future__ import annotations

import pytest
from tokenizers import Regex
from tokenizers.pre_tokenizers import Sequence, Split

from phial.tokenizer.pretokenizers import patterns_for

TEXT = "I'LL pay 12345.50, CamelCase's\n\n  x"


def words(pre: str, text: str) -> list[str]:
    cut = Sequence([Split(Regex(pattern), "isolated") for pattern in patterns_for(pre)])
    return [word for word, _ in cut.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", "I|'|LL| pay| 12345|.|50|,| CamelCase|'s|\n\n | x"),
        ("smollm", "I|'|LL| pay| |1|2|3|4|5|.|5|0|,| CamelCase|'s|\n\n | x"),
        ("default", "I|'|LL| pay| |123|45|.|50|,| CamelCase|'|s|\n\n | x"),
        ("llama-bpe", "I|'LL| pay| |123|45|.|50|,| CamelCase|'s|\n\n| | x"),
        ("dbrx", "I|'LL| pay| |123|45|.|50|,| CamelCase|'s|\n\n| | x"),
        ("qwen2", "I|'LL| pay| |1|2|3|4|5|.|5|0|,| CamelCase|'s|\n\n| | x"),
        ("gpt-4o", "I'LL| pay| |123|45|.|50|,| Camel|Case's|\n\n| | x"),
        ("tekken", "I|'LL| pay| |1|2|3|4|5|.|5|0|,| Camel|Case|'s|\n\n| | x"),
    ],
)
def test_each_family_cuts_where_it_should(pre: str, expected: str) -> None:
    assert "|".join(words(pre, TEXT)) == expected


def test_gpt_4o_keeps_marks_with_their_letters_and_knows_case_beyond_ascii() -> None:
    assert words("gpt-4o", "नमस्ते दुनिया") == ["नमस्ते", " दुनिया"]
    assert words("gpt-4o", "ÉtéÉté") == ["Été", "Été"]

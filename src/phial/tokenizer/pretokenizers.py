"""How byte-level vocabularies cut text into words before merging, by the name in tokenizer.ggml.pre.

Each entry is a list of patterns applied one after the other, matches and what lies between them both becoming pieces.
Names are llama.cpp's. Where llama.cpp approximates a model's own pattern (its regular expressions know no letter
case), the model's own is used: gpt-4o and tekken then agree with Hugging Face beyond ASCII too.
"""

from __future__ import annotations

from phial.errors import FormatError

_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = [r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"]
_GPT2_SINGLE_DIGITS = [r"\p{N}", *_GPT2]
_DEFAULT = [r"[\p{P}\$\+<=>\^~\|]+", *_GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = [_CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _TAIL]
_QWEN2 = [_CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _TAIL]
_SEED_CODER = [_CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"]
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_SLASH_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT4O = [
    f"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTION}?|" + r"\p{N}{1,3}|" + _SLASH_TAIL
]
_TEKKEN = [f"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|" + r"\p{N}|" + _SLASH_TAIL]
_DEEPSEEK_CODER = ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"]

_BY_PATTERN: list[tuple[list[str], str]] = [
    (_DEFAULT, "default"),
    (_GPT2, "gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum"),
    (_GPT2_SINGLE_DIGITS, "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2"),
    (_LLAMA3, "llama-bpe llama3 llama-v3 falcon3 pixtral midm-2.0 lfm2 dbrx smaug-bpe glm4 chatglm-bpe"),
    (_QWEN2, "qwen2 deepseek-r1-qwen megrez stablelm2 hunyuan kormo grok-2 solar-open"),
    (_GPT4O, "gpt-4o llama4 kanana2"),
    (_TEKKEN, "tekken"),
    (_SEED_CODER, "seed-coder"),
    (_DEEPSEEK_CODER, "deepseek-coder"),
]
PATTERNS: dict[str, list[str]] = {name: patterns for patterns, names in _BY_PATTERN for name in names.split()}

# Words found whole in the vocabulary are taken whole, without running the merges.
IGNORE_MERGES = frozenset("llama-bpe llama3 llama-v3 falcon3 pixtral midm-2.0 lfm2 tekken".split())


def patterns_for(pre: str) -> list[str]:
    """Patterns of a pre-tokenizer. FormatError, listing the known, for another name; "" stands for a missing one."""
    if pre not in PATTERNS:
        shown = f"is {pre!r}, which phial does not know" if pre else "is missing"
        raise FormatError(f"tokenizer.ggml.pre {shown}", "known: " + ", ".join(sorted(PATTERNS)))
    return PATTERNS[pre]

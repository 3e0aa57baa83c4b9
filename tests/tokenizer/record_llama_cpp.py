"""Records llama.cpp's token ids of the sample texts into tests/golden; run by hand where llama-cpp-python is installed.

    PYTHONPATH=src python tests/tokenizer/record_llama_cpp.py MODEL.gguf tests/golden/NAME_tokens.json.gz
    ... record_llama_cpp.py SMOLLM2.gguf tests/golden/pretokenizer_tokens.json.gz gpt-2 qwen2 ...

Ids are without BOS. The first form holds "plain" (control tokens read as text) and "special" (parsed), the second the
plain ids of the first 150 texts for each pre-tokenizer named, put into a copy of the model's metadata.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from sample_texts import sample_texts  # noqa: E402

PRETOKENIZER_TEXTS = 150


def open_vocabulary(model: str) -> Any:
    import llama_cpp

    return llama_cpp.Llama(model, vocab_only=True, verbose=False)


def ids(llm: Any, n: int, special: bool) -> list[list[int]]:
    return [llm.tokenize(text.encode(), add_bos=False, special=special) for text in sample_texts()[:n]]


def with_pretokenizer(model: str, pre: str) -> list[list[int]]:
    from phial.gguf.container import read_gguf, write_gguf

    with read_gguf(model) as file, tempfile.TemporaryDirectory() as folder:
        copy = str(Path(folder) / "vocabulary.gguf")
        write_gguf(copy, {**file.metadata, "tokenizer.ggml.pre": pre}, [])
        return ids(open_vocabulary(copy), PRETOKENIZER_TEXTS, False)


def main(model: str, output: str, *pretokenizers: str) -> None:
    if pretokenizers:
        record = {pre: with_pretokenizer(model, pre) for pre in pretokenizers}
    else:
        llm = open_vocabulary(model)
        record = {"plain": ids(llm, 1000, False), "special": ids(llm, 1000, True)}
    data = json.dumps(record, separators=(",", ":")).encode()
    Path(output).write_bytes(gzip.compress(data, 9, mtime=0))
    print(f"{output}: {len(data)} bytes of JSON")


if __name__ == "__main__":
    main(*sys.argv[1:])

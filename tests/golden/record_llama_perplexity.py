"""Records llama.cpp's next-token choices and losses on a public-domain text, for tests/engine/test_llama_cpp.py.

Run with an interpreter that has llama-cpp-python (`make peers`):
    python tests/golden/record_llama_perplexity.py SmolLM2-135M-Instruct.Q4_1.gguf
Reads subjection-of-women.txt.gz beside it (the first 50,000 bytes of J. S. Mill's essay of 1869).
"""

import gzip
import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np

HERE = Path(__file__).parent
WINDOW = 512  # tokens; each window starts with an empty cache


def record(model: str) -> dict[str, object]:
    llm = llama_cpp.Llama(model, n_ctx=WINDOW, n_batch=WINDOW, logits_all=True, verbose=False)
    ids = llm.tokenize(gzip.open(HERE / "subjection-of-women.txt.gz").read(), add_bos=False)
    losses, choices = [], []
    for start in range(0, len(ids) - WINDOW + 1, WINDOW):
        window = np.array(ids[start : start + WINDOW])
        llm.reset()
        llm.eval(window.tolist())
        logits = llm._scores[: WINDOW - 1].astype(np.float64)
        top = logits.max(1, keepdims=True)
        log_sum = (top + np.log(np.exp(logits - top).sum(1, keepdims=True)))[:, 0]
        losses.append(float((log_sum - logits[np.arange(WINDOW - 1), window[1:]]).sum()))
        choices.append(logits.argmax(1).tolist())
    version = llama_cpp.__version__
    return {"llama_cpp_python": version, "window": WINDOW, "ids": ids, "losses": losses, "choices": choices}


if __name__ == "__main__":
    text = json.dumps(record(sys.argv[1]))
    with gzip.GzipFile(HERE / "smollm2_perplexity.json.gz", "wb", mtime=0) as out:
        out.write(text.encode())

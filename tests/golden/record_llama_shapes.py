"""Records what llama-cpp-python 0.3.36 really answers, so that the tests never need it installed.

    PEERS_PYTHON tests/golden/record_llama_shapes.py SmolLM2-135M-Instruct.Q4_1.gguf tests/golden/llama_shapes.json

Every case holds the call and the response (or the chunks, or the error). Ids, times and the model's folder are
replaced by fixed text; everything else is as it came. Greedy throughout, so the texts are comparable as well.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import llama_cpp

PROMPT = "The capital of France is"
CHAT_PROMPT = "<|im_start|>user\nWhat is the capital of Italy?<|im_end|>\n<|im_start|>assistant\n"
MESSAGES = [{"role": "system", "content": "You answer briefly."}, {"role": "user", "content": "Name three colours."}]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}

COMPLETIONS: dict[str, dict[str, Any]] = {
    "plain": {"prompt": PROMPT, **GREEDY},
    "stream": {"prompt": PROMPT, "stream": True, **GREEDY},
    "echo": {"prompt": PROMPT, "echo": True, **GREEDY},
    "logprobs": {"prompt": PROMPT, "logprobs": 3, **GREEDY},
    "logprobs_zero": {"prompt": PROMPT, "logprobs": 0, **GREEDY},
    "logprobs_echo": {"prompt": PROMPT, "logprobs": 3, "echo": True, **GREEDY},
    "logprobs_stream": {"prompt": PROMPT, "logprobs": 3, "stream": True, **GREEDY},
    "token_prompt": {"prompt": [504, 3575, 282, 4649, 314], **GREEDY},
    "stop_string": {"prompt": PROMPT, "stop": " has", **GREEDY},
    "stop_list": {"prompt": PROMPT, "stop": ["zebra", "States", "ited"], **GREEDY},
    "stop_list_order": {"prompt": PROMPT, "stop": ["tates", " States"], **GREEDY},
    "stop_stream": {"prompt": PROMPT, "stop": ["zebra", " States of", " has a"], "stream": True, **GREEDY},
    "stop_across_tokens": {"prompt": PROMPT, "stop": ["ited Sta"], **GREEDY},
    "stop_across_tokens_stream": {"prompt": PROMPT, "stop": ["ited Sta"], "stream": True, **GREEDY},
    "stop_logprobs": {"prompt": PROMPT, "stop": [" has"], "logprobs": 2, **GREEDY},
    "end_of_generation": {"prompt": CHAT_PROMPT, "temperature": 0.0, "max_tokens": 200},
    "end_of_generation_stream": {"prompt": CHAT_PROMPT, "temperature": 0.0, "max_tokens": 200, "stream": True},
    "max_tokens_none": {"prompt": CHAT_PROMPT, "temperature": 0.0, "max_tokens": None},
    "context_end": {"prompt": "The capital of France is Paris. " * 71, "temperature": 0.0, "max_tokens": 100},
    "emoji": {"prompt": "Repeat: 🙂🙃🙂🙃🙂🙃🙂", **GREEDY},
    "emoji_stream": {"prompt": "Repeat: 🙂🙃🙂🙃🙂🙃🙂", "stream": True, **GREEDY},
    "repeat_penalty": {"prompt": PROMPT, "repeat_penalty": 1.5, **GREEDY},
    "logit_bias": {"prompt": PROMPT, "logit_bias": {7042: -100.0}, "temperature": 0.0, "max_tokens": 4},
    "suffix": {"prompt": PROMPT, "suffix": " The end.", **GREEDY},
    "model_name": {"prompt": PROMPT, "model": "my-model", **GREEDY},
    "prompt_too_long": {"prompt": "word " * 600, **GREEDY},
    "empty_prompt": {"prompt": "", **GREEDY},
}
CHATS: dict[str, dict[str, Any]] = {
    "chat": {"messages": MESSAGES, **GREEDY},
    "chat_stream": {"messages": MESSAGES, "stream": True, **GREEDY},
    "chat_logprobs": {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2, **GREEDY},
    "chat_logprobs_stream": {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2, "stream": True, **GREEDY},
    "chat_no_system": {"messages": MESSAGES[1:], "temperature": 0.0, "max_tokens": 4},
    "chat_stop": {"messages": MESSAGES, "stop": [","], **GREEDY},
}
EMBEDDINGS: dict[str, dict[str, Any]] = {
    "embedding_mean": {"pooling_type": 1, "input": "Hello world"},
    "embedding_cls": {"pooling_type": 2, "input": "Hello world"},
    "embedding_last": {"pooling_type": 3, "input": ["Hello world", "Good night"]},
    "embedding_none": {"pooling_type": 0, "input": "Hello world"},
    "embedding_unspecified": {"pooling_type": -1, "input": "Hello world"},
}


def fixed(response: Any) -> Any:
    """The response with everything that differs between two runs replaced."""
    if isinstance(response, dict):
        kept = {key: fixed(value) for key, value in response.items()}
        if "created" in kept:
            kept["created"] = 0
            kept["id"] = kept["id"].split("-")[0] + "-<uuid>"
        return kept
    if isinstance(response, (list, tuple)):
        return [fixed(value) for value in response]
    if isinstance(response, float) or hasattr(response, "dtype"):
        return round(float(response), 6)
    return Path(response).name if isinstance(response, str) and response.endswith(".gguf") else response


def record(call: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """One case: the arguments and what came back."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            response = call(**arguments)
            key = "chunks" if arguments.get("stream") else "response"
            outcome: dict[str, Any] = {key: fixed(list(response) if arguments.get("stream") else response)}
        except Exception as error:  # the error is the recorded outcome
            outcome = {"error": type(error).__name__, "message": str(error)}
    return {"arguments": arguments, "warnings": [type(w.message).__name__ for w in caught], **outcome}


def next_token_logprobs(model: llama_cpp.Llama, text: str) -> dict[str, Any]:
    """log p(token i | tokens before it), computed from the raw scores: the truth the echoed logprobs are held to."""
    model.reset()
    tokens = model.tokenize(text.encode(), special=True)
    model.eval(tokens)
    rows = model.logits_to_logprobs(model._scores)
    values = [float(rows[i - 1][token]) for i, token in enumerate(tokens) if i > 0]
    return {"text": text, "tokens": tokens, "logprobs": [None] + [round(v, 6) for v in values]}


def shortened(case: dict[str, Any]) -> dict[str, Any]:
    """Embedding vectors cut to their first eight numbers, with their length kept beside them."""
    for item in case["response"]["data"]:
        vectors = item["embedding"] if isinstance(item["embedding"][0], list) else [item["embedding"]]
        item["n_vectors"], item["n_numbers"] = len(vectors), len(vectors[0])
        item["embedding"] = [v[:8] for v in vectors] if isinstance(item["embedding"][0], list) else vectors[0][:8]
    return case


def main(model_path: str, out: str) -> None:
    """Record every case and write the JSON file."""
    cases: dict[str, Any] = {"source": f"llama-cpp-python {llama_cpp.__version__}", "model": Path(model_path).name}
    model = llama_cpp.Llama(model_path, n_ctx=512, n_threads=2, logits_all=True, verbose=False)
    for name, arguments in COMPLETIONS.items():
        model.reset()
        cases[name] = record(model.create_completion, arguments)
    for name, arguments in CHATS.items():
        model.reset()
        cases[name] = record(model.create_chat_completion, arguments)
    cases["true_logprobs"] = next_token_logprobs(model, PROMPT + " Paris. Paris")
    cases["facts"] = {
        name: getattr(model, name)()
        for name in ("n_ctx", "n_embd", "n_vocab", "token_bos", "token_eos", "token_nl", "pooling_type")
    }
    plain = llama_cpp.Llama(model_path, n_ctx=512, n_threads=2, verbose=False)
    cases["logprobs_without_logits_all"] = record(plain.create_completion, COMPLETIONS["logprobs"])
    cases["embedding_without_flag"] = record(plain.create_embedding, {"input": "Hello"})
    for name, arguments in EMBEDDINGS.items():
        embedder = llama_cpp.Llama(
            model_path, n_ctx=512, n_threads=2, embedding=True, pooling_type=arguments["pooling_type"], verbose=False
        )
        cases[name] = shortened(
            {**record(embedder.create_embedding, {"input": arguments["input"]}), "arguments": arguments}
        )
    Path(out).write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:3])

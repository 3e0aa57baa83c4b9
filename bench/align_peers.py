"""What bench/align.py measures phial against: TRL's SFTTrainer and DPOTrainer over the same token ids."""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from align import Clock, Talk


def run_trl(
    what: str, folder: Path, examples: Sequence[Talk], clock: Clock, options: argparse.Namespace, *, before: bool
) -> list[float]:
    """The losses of all steps. before: DPO's reference is computed before training."""
    from align import BETA, LR
    from datasets import Dataset
    from transformers import LlamaForCausalLM, TrainerCallback
    from transformers.utils import logging
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    class Ticks(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.tick()

    class InOrder:
        """The examples as they are: their tokens, in their order."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[attr-defined]

    class Sft(InOrder, SFTTrainer):
        pass

    class Dpo(InOrder, DPOTrainer):
        pass

    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as run:
        common: dict[str, Any] = {
            "output_dir": run, "max_steps": options.steps, "per_device_train_batch_size": options.batch,
            "use_cpu": True, "bf16": options.precision == "bf16", "optim": "adamw_torch_fused", "learning_rate": LR,
            "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_epsilon": 1e-8, "weight_decay": 0.0, "max_grad_norm": 1.0,
            "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no", "report_to": "none",
            "disable_tqdm": True, "gradient_checkpointing": False, "max_length": None,
        }  # fmt: skip
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        kit: dict[str, Any] = {"model": model, "processing_class": _tokenizer(), "callbacks": [Ticks()]}
        clock.started = clock.now()
        if what == "sft":
            rows = [{"input_ids": t.prompt + t.chosen, "labels": [-100] * len(t.prompt) + t.chosen} for t in examples]
            trainer: Any = Sft(args=SFTConfig(**common), train_dataset=Dataset.from_list(rows), **kit)
        else:
            names = {"prompt": "prompt_ids", "chosen": "chosen_ids", "rejected": "rejected_ids"}
            rows = [{new: getattr(t, old) for old, new in names.items()} for t in examples]
            reference = None if before else LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
            settings = DPOConfig(**common, beta=BETA, precompute_ref_log_probs=before)
            trainer = Dpo(args=settings, ref_model=reference, train_dataset=Dataset.from_list(rows), **kit)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            trainer.train()
        clock.tick()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def _tokenizer() -> Any:
    """One that knows what padding is; there is nothing to tokenize."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")

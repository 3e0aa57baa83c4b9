"""The loop: accumulation by token count, options that change nothing, what stops a run, and that a model learns."""

from __future__ import annotations

import errno
import math
import traceback
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.train.counting import TINY, Counting, Phases, run, tiny_model
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

from phial.errors import PhialError
from phial.model.transformer import Transformer
from phial.train import checkpoints
from phial.train.flops import flops_per_token
from phial.train.loop import LoopConfig, train
from phial.train.lora import LoraConfig, add_lora
from phial.train.metrics import read_metrics
from phial.train.objective import IGNORED, Batch, Loss, NextToken
from phial.train.optim import OptimizerConfig


def _trained(pieces: int, folder: Path, steps: int = 5) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TINY)
    train(model, Counting(pieces), NextToken(), LoopConfig(steps=steps), folder, quiet=True)
    return model


@pytest.mark.parametrize("pieces", [2, 8])
def test_any_split_of_a_batch_gives_the_same_weights(pieces: int, tmp_path: Path) -> None:
    whole, split = _trained(1, tmp_path / "1"), _trained(pieces, tmp_path / "2")
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_model_learns_to_count(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LoopConfig(steps=200, optimizer=OptimizerConfig(lr=5e-3))
    last = train(Transformer(TINY), Counting(1), NextToken(), config, tmp_path, quiet=True)
    assert last["loss"] < 0.5  # the uniform guess has 4.2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_layers_give_the_same_run(precision: str, tmp_path: Path) -> None:
    kept = run(tmp_path / "kept", precision=precision, steps=4)
    recomputed = run(tmp_path / "recomputed", precision=precision, steps=4, recompute=True)
    for a, b in zip(kept.parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert "forward" not in vars(recomputed.model.layers[0])  # the model is as it was


def test_recomputed_layers_keep_less(tmp_path: Path) -> None:
    """Bytes held for the way back, counted where autograd packs them."""

    class Held(NextToken):
        def __call__(self, model: nn.Module, batch: Batch) -> Loss:
            self.held = 0
            with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
                return super().__call__(model, batch)

        def _pack(self, tensor: Tensor) -> Tensor:
            self.held += tensor.nbytes
            return tensor

    held = []
    for recompute in (False, True):
        objective = Held()
        config = LoopConfig(steps=1, recompute=recompute)
        train(tiny_model(), Phases(), objective, config, tmp_path / str(recompute), quiet=True)
        held.append(objective.held)
    assert held[1] < held[0] / 2


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_layers_give_the_same_losses(recompute: bool, tmp_path: Path) -> None:
    """Needs a C++ compiler; without dropout, which would draw other numbers."""
    rows = []
    for compile in (False, True):
        torch.manual_seed(0)
        config = LoopConfig(steps=5, compile=compile, recompute=recompute)
        train(Transformer(TINY), Phases(), NextToken(), config, tmp_path / str(compile), quiet=True)
        rows.append([row["loss"] for row in read_metrics(tmp_path / str(compile) / "metrics.jsonl")])
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)


def test_the_average_is_what_is_evaluated_and_kept(tmp_path: Path) -> None:
    """Against the definition, from the weights after each step."""
    weights, evaluated = [], []

    class Watching(Phases):
        def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Batch]:
            weights.append(model.model.norm.weight.detach().clone())
            return super().micro_batches(step, rank, world)

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert not model.training and not torch.is_grad_enabled()
        evaluated.append(model.model.norm.weight.detach().clone())
        return {"validation/loss": 1.0}

    model = tiny_model()
    config = LoopConfig(steps=6, ema=0.3, evaluate_every=5, optimizer=OptimizerConfig(lr=0.2))
    train(model, Watching(), NextToken(), config, tmp_path, evaluate=evaluate, quiet=True)
    mean = weights[0]
    for updates, after in enumerate(weights[1:], 1):
        decay = min(0.3, (1 + updates) / (10 + updates))
        mean = decay * mean + (1 - decay) * after
    torch.testing.assert_close(
        evaluated[0], mean, rtol=1e-6, atol=1e-6
    )  # after five steps; the weights after the sixth were not seen
    assert torch.equal(evaluated[1], model.model.norm.weight) and not torch.equal(evaluated[1], evaluated[0])


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    class Breaks(NextToken):
        calls = 0

        def __call__(self, model: nn.Module, batch: Batch) -> Loss:
            self.calls += 1
            loss = super().__call__(model, batch)
            return Loss(loss.total * (math.nan if self.calls == 11 else 1), loss.sums)  # a gradient of nan, in step 6

    config = LoopConfig(steps=9, checkpoint_every=2)
    with pytest.raises(PhialError, match="the loss of step 6 is .*, the norm of its gradient nan"):
        train(tiny_model(), Phases(), Breaks(), config, tmp_path, quiet=True)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000002", "00000004"]


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    def evaluate(model: nn.Module) -> dict[str, float]:
        next(model.parameters()).fill_(math.inf)
        return {}

    config = LoopConfig(steps=9, checkpoint_every=1, evaluate_every=3)
    with pytest.raises(PhialError, match="after step 3 some weights"):
        train(tiny_model(), Phases(), NextToken(), config, tmp_path, evaluate=evaluate, quiet=True)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000001", "00000002"]


def test_a_step_without_targets_is_an_error(tmp_path: Path) -> None:
    class Empty(Phases):
        def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> Sequence[Batch]:
            pieces = super().micro_batches(step, rank, world)
            return [{**piece, "targets": torch.full_like(piece["targets"], IGNORED)} for piece in pieces]

    with pytest.raises(PhialError, match="step 1 has no targets"):
        train(tiny_model(), Empty(), NextToken(), LoopConfig(steps=3), tmp_path, quiet=True)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [FULL, CheckpointException("save", {0: (FULL, traceback.extract_stack())})])
def test_a_full_disk_is_named_and_the_checkpoint_before_stays(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, *, checkpoint_id: Path, **rest: object) -> None:
        if checkpoint_id.name.startswith("00000004"):
            raise error
        save(tensors, checkpoint_id=checkpoint_id, **rest)

    monkeypatch.setattr(checkpoints, "save", full)
    with pytest.raises(PhialError, match=r"no checkpoint can be written to [^\n]*No space left on device\nhint"):
        train(tiny_model(), Phases(), NextToken(), LoopConfig(steps=9, checkpoint_every=2), tmp_path, quiet=True)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()] == ["00000002"]


def test_damaged_metrics_are_named_and_nothing_of_them_is_lost(tmp_path: Path) -> None:
    run(tmp_path, steps=6)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for damage in (b"\xff\xfe\n", b"5\n", b'{"step": "x"}\n', b"{\n"):
        path.write_bytes(damaged := b"".join([lines[0], damage, *lines[2:]]))
        with pytest.raises(PhialError, match="is damaged in line 2"):
            run(tmp_path, steps=6)
        assert path.read_bytes() == damaged
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:9])  # of a finished run: its last row is what it came to
    with pytest.raises(PhialError, match="has no metrics of its last step"):
        run(tmp_path, steps=6)
    path.write_bytes(whole)
    run(tmp_path, steps=6)
    assert path.read_bytes() == whole


def test_lines_and_a_picture_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def evaluate(model: nn.Module) -> dict[str, float]:
        return {"validation/web/loss": 4.25, "validation/loss": 4.125}

    run(tmp_path, quiet=False, evaluate=evaluate, steps=6, log_every=2)
    out, err = capsys.readouterr()
    assert out == ""
    steps = [line.split(":")[0] for line in err.splitlines()]
    assert steps == ["step 2/6", "step 4/6", "step 6/6"]
    assert "tokens/s, MFU " in err and err.endswith("validation/web 4.250, validation 4.125\n")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_flops_of_a_token() -> None:
    """By hand: 2 layers of q, k, v, o and three of the MLP, the tied output matrix, and attention over 16 tokens."""
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64
    assert flops_per_token(tiny_model(), 16) == 6 * (2 * layer + 64 * 32) + 12 * 2 * 4 * 8 * 16
    add_lora(adapted := tiny_model(), LoraConfig(rank=2, targets=("q_proj",)))
    frozen, learnt = 2 * layer + 64 * 32, 2 * 2 * (32 + 32)
    assert flops_per_token(adapted, 16) == 4 * frozen + 6 * learnt + 12 * 2 * 4 * 8 * 16

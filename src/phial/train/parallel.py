"""Many processes that train one model: `torchrun` starts them, FSDP2 shares weights, gradients and optimiser state.

Every process holds a slice of each matrix; a layer's are gathered where it is run and its gradients are summed back
into slices, so that memory falls with the number of processes. Losses are sums over tokens divided by the count of the
whole batch, gradients are sums over processes: the result is that of one process, but for the order of additions.
Left out: tensor, context and pipeline parallelism, which models of this size do not need.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from phial.errors import PhialError
from phial.model.transformer import DecoderLayer
from phial.train.objective import Batch
from phial.train.processes import OneProcess, Processes, Trained

TIMEOUT = timedelta(minutes=10)  # a process that waits longer for another gives up: nothing hangs for ever
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def torchrun_processes(timeout: timedelta = TIMEOUT) -> Iterator[Processes]:
    """The processes that torchrun has started together with this one; this one alone where it was started alone.

    They talk through gloo on CPUs and, where there are GPUs, through nccl, one process a GPU. Where this process fails,
    it leaves without waiting: the others find the connection closed, or torchrun ends them.

    Raises PhialError for an environment that is not whole, or for more processes than GPUs.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield OneProcess()
        return
    missing = [name for name in _VARIABLES if not os.environ.get(name)]
    if missing:
        raise PhialError(f"WORLD_SIZE is set, but {', '.join(missing)} not", "start many processes with torchrun")
    device = _device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timeout)
    yield ManyProcesses(device, timeout)
    dist.barrier()  # rank 0 may still be writing; who leaves earlier would break its connections
    dist.destroy_process_group()


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise PhialError(
            f"process {local_rank} of this machine finds {torch.cuda.device_count()} GPUs",
            "give torchrun --nproc-per-node the number of GPUs",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


class ManyProcesses:
    """This process among those of torchrun; what the loop asks of them is said in Processes."""

    def __init__(self, device: torch.device, timeout: timedelta = TIMEOUT) -> None:
        self.rank, self.world, self.device = dist.get_rank(), dist.get_world_size(), device
        self.checkpoint_group: Any = dist.new_group(backend="gloo", timeout=timeout)

    def shard(self, model: nn.Module, precision: str, shards: int | None) -> None:
        check_torch()
        mesh = self._mesh(shards or self.world)
        model.to(self.device)
        self._unsharded = _without_weights(model)
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                dist.broadcast(tensor, 0)  # one model, whatever each process had drawn
        shard_model(model, mesh, precision)

    def _mesh(self, shards: int) -> DeviceMesh:
        """The processes in a row, or as rows that hold a copy each: neighbours, so those of one machine."""
        if self.world % shards:
            raise PhialError(f"shards is {shards}, which does not divide {self.world} processes", "choose a divisor")
        if shards == self.world:
            return init_device_mesh(self.device.type, (shards,))
        shape, names = (self.world // shards, shards), ("copies", "shards")
        return init_device_mesh(self.device.type, shape, mesh_dim_names=names)

    def sums(self, values: Sequence[float]) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return list(tensor.tolist())

    def gathered(self, rows: Tensor) -> list[Tensor]:
        counts = [int(n) for n in self.sums([len(rows) * (rank == self.rank) for rank in range(self.world)])]
        padded = rows.new_zeros(max(*counts, 1), *rows.shape[1:])
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(found, padded)
        return [part[:n] for part, n in zip(found, counts, strict=True)]

    def rounds(self, pieces: Sequence[Batch]) -> list[tuple[Batch, float]]:
        lengths = [int(n) for n in self.sums([len(pieces) * (rank == self.rank) for rank in range(self.world)])]
        most = max(lengths)
        spare: list[Any] = [pieces[0] if pieces else None]
        if min(lengths) == 0 < most:  # a process without any borrows one to go along with
            dist.broadcast_object_list(spare, lengths.index(most), device=torch.device("cpu"))
        fill = pieces[0] if pieces else spare[0]
        return [(piece, 1.0) for piece in pieces] + [(fill, 0.0)] * (most - len(pieces))

    def before_backward(self, model: nn.Module, last: bool) -> None:
        assert isinstance(model, FSDPModule), "shard() comes first"
        model.set_requires_gradient_sync(last)

    def clip(self, model: nn.Module, largest: float) -> float:
        norm = nn.utils.clip_grad_norm_(model.parameters(), largest)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def checkpoint_barrier(self) -> None:
        dist.barrier(group=self.checkpoint_group)

    def whole(self, model: Trained) -> Trained | None:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(model, options=options)
        if self.rank != 0:
            return None
        made = cast(Trained, self._unsharded)
        made.load_state_dict(state, assign=True)
        return made


def _without_weights(model: nn.Module) -> nn.Module:
    """A copy of a model whose parameters are on the meta device, and whose buffers are the model's own."""
    known: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for p in model.parameters():
        known[id(p)] = nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad)
    return copy.deepcopy(model, known)


def check_torch() -> None:
    """Raises PhialError where this PyTorch cannot sum gradients over processes."""
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise PhialError(f"torch {torch.__version__} averages gradients over processes", "pip install -U torch")


def shard_model(model: nn.Module, mesh: DeviceMesh, precision: str) -> None:
    """Cut a model's parameters into slices over a mesh, in place: one group a layer, one for the rest.

    Under bf16 a layer's matrices travel as bfloat16, which is what autocast makes of them anyway: the same numbers for
    half the traffic. Norms and embeddings, which autocast leaves alone, belong to the last group and stay float32, and
    so do the weights the optimiser sees and all gradients on their way.
    """
    policy = MixedPrecisionPolicy()
    if precision == "bf16":
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for module in model.modules():
        if isinstance(module, DecoderLayer):
            fully_shard([module.self_attn, module.mlp], mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    model.register_forward_hook(_let_go)


def _let_go(model: nn.Module, inputs: Any, output: Any) -> None:
    """The last group stays gathered for the way back; without gradients there is none, and weights may change next."""
    if isinstance(model, FSDPModule) and not torch.is_grad_enabled():
        model.reshard()

"""Muon for matrices that are cut over processes: torch.optim.Muon orthogonalises whole ones only at great cost.

On the slices of FSDP2 its products would exchange matrices in each of the five iterations. Here a matrix, its gradient
and its momentum are gathered once, every process takes the same step, and keeps its own rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate


class Muon(torch.optim.Muon):
    """torch.optim.Muon, and the same numbers bit for bit whatever the matrices are cut into.

    The work of orthogonalising is done by every process, not shared.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step, as torch.optim.Muon's."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            # loading a state adds a default that no group has and the constructor does not take
            settings = {name: group[name] for name in self.defaults if name in group}
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, p.grad, settings)
        return loss

    def _step(self, p: nn.Parameter, gradient: Tensor, settings: dict[str, Any]) -> None:
        momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(gradient))
        matrix, whole = nn.Parameter(_whole(p)), _whole(momentum)
        matrix.grad = _whole(gradient)
        alone = torch.optim.Muon([matrix], **settings)
        alone.state[matrix]["momentum_buffer"] = whole
        alone.step()  # type: ignore[no-untyped-call]
        for mine, stepped in ((p, matrix), (momentum, whole)):
            if isinstance(mine, DTensor):
                mesh = mine.device_mesh
                everywhere = DTensor.from_local(stepped.detach(), mesh, [Replicate()] * mesh.ndim)
                mine.copy_(everywhere.redistribute(placements=mine.placements))


def _whole(tensor: Tensor) -> Tensor:
    """A matrix of which this process may have a part: gathered, or itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()

"""What tuning a whole model has in common, whatever it is tuned towards: gentle rates where the file has none."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

Epochs = Annotated[
    float, Field(gt=0, le=1000, description="how often all is read; in part where it is no whole number")
]
_WHOLE = 2e-5
_ADAPTER = 2e-4  # adapters are few and begin at zero: the rate of arXiv 2106.09685 and of QLoRA's small models
_SCHEDULE = {"kind": "cosine", "warmup": 0.05}


def gentle_loop(table: Any, lr: float = _WHOLE, adapter_lr: float = _ADAPTER) -> Any:
    """A configuration's table with a [loop] whose gaps are filled for tuning; for a validator of mode "before".

    Args:
        lr: of all weights. adapter_lr: where the table has "lora".

    Raises ValueError for steps, which follow from the epochs. Anything but tables is pydantic's to refuse.
    """
    if not isinstance(table, dict) or not isinstance(loop := table.get("loop", {}), dict):
        return table
    if "steps" in loop:
        raise ValueError("loop.steps follow from the epochs")
    rate = lr if table.get("lora") is None else adapter_lr
    defaults: dict[str, dict[str, Any]] = {"optimizer": {"lr": rate, "weight_decay": 0.0}, "schedule": _SCHEDULE}
    for key, default in defaults.items():
        given = loop.get(key, {})
        loop = loop | {key: {**default, **given} if isinstance(given, dict) else given}
    return table | {"loop": {"steps": 1, **loop}}

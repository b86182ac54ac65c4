"""How much memory a training may fill."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from acme_rag_pipeline.settings import SettingsError

if TYPE_CHECKING:
    import torch

# Of control groups, version 2 and 1.
CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class NotEnoughMemory(SettingsError):
    """Texts that go through the model together do not go into the memory of the device."""


def memory_bytes(device: torch.device) -> int:
    """The memory that a training on this device may fill: the card's, else the machine's or what a container is given."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    import psutil

    return min([psutil.virtual_memory().total, *_container_limits()])


def _container_limits() -> list[int]:
    """What there is of them; a word in place of the number says that there is none."""
    limits = []
    for path in CONTAINER_LIMITS:
        try:
            limits.append(int(path.read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return limits

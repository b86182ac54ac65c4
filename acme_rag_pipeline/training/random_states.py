"""The states of torch's random generators, of every device that may draw: for dropout that comes out the same twice."""

from __future__ import annotations

from typing import Any


def random_states() -> dict[str, Any]:
    """The state of each generator."""
    import torch

    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Set them again; those of devices that are not here are left out."""
    import torch

    torch.set_rng_state(states["cpu"])
    if states["cuda"] and torch.cuda.is_initialized() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])

"""The state of an unfinished training run: saved beside the store's work files, gone on from after a kill."""

from __future__ import annotations

import copy
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acme_rag_pipeline.training.random_states import random_states, set_random_states

logger = logging.getLogger(__name__)


@dataclass
class Curve:
    """What training looked like: for the log, the report and the UI.

    Attributes:
        seconds: of the loop, validation after its epochs included.
        earlier_seconds: those among them that runs took which were killed.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    earlier_seconds: float = 0.0
    pairs_per_second: float = 0.0
    best_epoch: int | None = None
    trained: str = ""

    def ndcg_of_best(self) -> float | None:
        """Validation nDCG@10 of the best epoch; None without validation."""
        return next((row["ndcg@10"] for row in self.epochs if row["epoch"] == self.best_epoch), None)


@dataclass
class Best:
    """The epoch that validation likes best so far, with its trained weights on the CPU."""

    epoch: int
    ndcg: float
    weights: dict[str, Any]

    def put_into(self, model: Any) -> None:
        """Set the model's trained weights to those of the best epoch."""
        model.load_state_dict(self.weights, strict=False)


def trained_weights(model: Any) -> dict[str, Any]:
    """A copy on the CPU of the weights that training moves."""
    return {n: p.detach().cpu().clone() for n, p in model.named_parameters() if p.requires_grad}


def save_checkpoint(
    checkpoint: Path, step: int, model: Any, optimizer: Any, scheduler: Any, curve: Curve, best: Best | None
) -> None:
    """Replace the checkpoint; a kill or a power cut leaves the old one or the new one."""
    import torch

    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    temporary = checkpoint.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(
            {
                "step": step,
                "weights": trained_weights(model),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "random": random_states(),
                "curve": {"steps": curve.steps, "epochs": curve.epochs, "seconds": curve.seconds},
                "best": vars(best) if best else None,
            },
            file,
        )
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(checkpoint)


def resume(checkpoint: Path, model: Any, optimizer: Any, scheduler: Any) -> tuple[int, Curve, Best | None]:
    """Load a checkpoint into the model and its optimizer.

    Returns:
        The steps done (0 when it cannot be read), the curve and the best epoch so far.
    """
    import torch

    try:
        saved = torch.load(checkpoint, weights_only=True, map_location="cpu")
        best = Best(**saved["best"]) if saved["best"] else None
        trains = {n: p.shape for n, p in model.named_parameters() if p.requires_grad}
        if {n: weight.shape for n, weight in saved["weights"].items()} != trains:
            raise ValueError("it trained other weights")
        done, curve = int(saved["step"]), Curve(**saved["curve"])
        fresh = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(scheduler.state_dict())
        try:
            optimizer.load_state_dict(saved["optimizer"])
            scheduler.load_state_dict(saved["scheduler"])
            set_random_states(saved["random"])
        except Exception:
            optimizer.load_state_dict(fresh[0])
            scheduler.load_state_dict(fresh[1])
            raise
    except Exception as error:
        logger.warning("the checkpoint %s cannot be read (%s): training starts again", checkpoint.name, error)
        return 0, Curve(), None
    model.load_state_dict(saved["weights"], strict=False)
    return done, curve, best

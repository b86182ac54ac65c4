"""What an LLM's tokens cost at the prices of the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from acme_rag_pipeline.setting_groups import PairSettings
from acme_rag_pipeline.settings import Settings

if TYPE_CHECKING:
    import duckdb


def cost(prompt_tokens: int, completion_tokens: int, settings: PairSettings) -> float | None:
    """What the tokens cost, in the money of the prices; None where a price is not set."""
    if settings.price_input is None or settings.price_output is None:
        return None
    return round((prompt_tokens * settings.price_input + completion_tokens * settings.price_output) / 1e6, 6)


def spent(connection: duckdb.DuckDBPyConnection, settings: Settings) -> dict[str, float]:
    """`calls`, `prompt_tokens`, `completion_tokens` of the model of today over all runs of the store; `cost` with prices."""
    calls, sent, received = connection.execute(
        "SELECT count(*), sum(prompt_tokens), sum(completion_tokens) FROM llm_calls WHERE model = ?", [settings.llm]
    ).fetchall()[0]
    sent, received = int(sent or 0), int(received or 0)
    so_far: dict[str, float] = {"calls": calls, "prompt_tokens": sent, "completion_tokens": received}
    money = cost(sent, received, settings.pairs)
    return so_far if money is None else so_far | {"cost": money}

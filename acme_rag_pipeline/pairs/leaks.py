"""Whether training sees what it is judged by: counted from the finished tables, by other code than that which filters."""

from __future__ import annotations

from dataclasses import dataclass

from acme_rag_pipeline.pairs.wording import query_key
from acme_rag_pipeline.store.warehouse import Warehouse, records


@dataclass(frozen=True)
class Leaks:
    """What training would see of the held-out units, in pairs (negatives: in negatives).

    Attributes:
        training_pairs: pairs that are trained on.
        passages: those whose passage is held out, or nearly repeats one that is.
        negatives: negatives of which that is true.
        held_out_queries: those with the wording of a query that judges.
        golden_queries: those with the wording of a golden query.
    """

    training_pairs: int
    passages: int
    negatives: int
    held_out_queries: int
    golden_queries: int

    @property
    def total(self) -> int:
        """All leaks together; 0 is the only good number."""
        return self.passages + self.negatives + self.held_out_queries + self.golden_queries


def find_leaks(warehouse: Warehouse, *, golden_decides: bool) -> Leaks:
    """Count them.

    Args:
        warehouse: with `training_pairs`, `chunks` and `golden_queries` of today.
        golden_decides: golden queries judge the candidate, so that the test side is trained on.
    """
    held_out = {"validation"} if golden_decides else {"validation", "test"}
    with warehouse.read() as connection:
        chunks = records(connection, "SELECT chunk_id, near_duplicate_group, side FROM chunks")
        kept = records(
            connection, "SELECT query, chunk_id, side, negatives FROM training_pairs WHERE dropped_because IS NULL"
        )
        golden = {query_key(row["query"]) for row in records(connection, "SELECT query FROM golden_queries")}
    group = {row["chunk_id"]: row["near_duplicate_group"] for row in chunks}
    groups = {row["near_duplicate_group"] for row in chunks if row["side"] in held_out}
    secret = {row["chunk_id"] for row in chunks if group[row["chunk_id"]] in groups}
    judging = {query_key(row["query"]) for row in kept if row["side"] in held_out}
    trained = [row for row in kept if row["side"] not in held_out]
    wordings = [query_key(row["query"]) for row in trained]
    return Leaks(
        training_pairs=len(trained),
        passages=sum(row["chunk_id"] in secret for row in trained),
        negatives=sum(negative in secret for row in trained for negative in row["negatives"]),
        held_out_queries=sum(wording in judging for wording in wordings),
        golden_queries=sum(wording in golden for wording in wordings),
    )

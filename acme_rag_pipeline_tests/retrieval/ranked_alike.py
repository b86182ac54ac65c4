"""What people find is what was judged."""

from __future__ import annotations

from collections.abc import Sequence

from acme_rag_pipeline.evaluation.arms import Arm, ArmRunner
from acme_rag_pipeline.evaluation.golden import JudgedQuery
from acme_rag_pipeline.evaluation.metrics import Evidence
from acme_rag_pipeline.retrieval import Retriever
from acme_rag_pipeline.setting_groups import RetrievalSettings
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store


def assert_ranked_alike(
    store: Store, settings: Settings, fusion: RetrievalSettings, arms: Sequence[Arm], queries: Sequence[str]
) -> None:
    """Readers and the evaluation put the same three passages first, and a longer answer begins with the shorter one."""
    judged = [JudgedQuery(str(n), q, (Evidence("travel.md", None, None, 1),), "u", {}) for n, q in enumerate(queries)]
    runner = ArmRunner(store, settings.model_copy(update={"retrieval": fusion}))
    reader = Retriever.open(store.root, fusion)
    for arm in arms:
        ran = runner.run(arm, judged)
        for query in judged:
            hits = reader.search(query.query, k=3, retriever=arm.name)
            assert [hit.chunk_id for hit in hits] == list(ran.best[query.query_id]), (fusion, arm.name)
            more = reader.search(query.query, k=1000, retriever=arm.name)
            assert more[:3] == hits, "a longer answer begins with the shorter one"

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acme_rag_pipeline.evaluation.metrics import METRICS, PRIMARY, Evidence, Hit, evidence_ranks, finds, score_query

PATHS = st.sampled_from(["a.md", "b/c.md", "b/d.md"])


@st.composite
def hits(draw: st.DrawFn) -> Hit:
    start = draw(st.integers(0, 4000))
    return Hit(draw(PATHS), start, start + draw(st.integers(1, 4000)))


@st.composite
def evidence(draw: st.DrawFn) -> Evidence:
    start = draw(st.none() | st.integers(0, 4000))
    end = None if start is None else start + draw(st.integers(1, 2000))
    return Evidence(draw(PATHS), start, end, draw(st.integers(1, 3)))


def reference(ranked: list[Hit], judged: list[Evidence], k: int) -> tuple[float, float, float]:
    """The definition of the metrics, told in other words: pieces are numbered and each is credited to one rank."""
    credited: dict[int, int] = {}
    for number, piece in enumerate(judged):
        for rank, hit in enumerate(ranked[:k], start=1):
            if hit.doc_path != piece.doc_path:
                continue
            if piece.start is not None:
                read = set(range(hit.start, min(hit.end, hit.start + 2400)))
                wanted = set(range(piece.start, piece.end))
                common = len(read & wanted)
                if common == 0 or (common / len(wanted) < 0.5 and common / len(read) < 0.5):
                    continue
            credited[number] = rank
            break
    dcg = math.fsum(judged[number].relevance / math.log2(rank + 1) for number, rank in credited.items())
    best = sorted((piece.relevance for piece in judged), reverse=True)[:k]
    ideal = math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(best, start=1))
    first = min(credited.values(), default=math.inf)
    return min(1.0, dcg / ideal), 1 / first, min(1.0, len(credited) / min(k, len(judged)))


@settings(max_examples=150, deadline=None)
@given(st.lists(hits(), max_size=25), st.lists(evidence(), min_size=1, max_size=6))
def test_scores_equal_the_contract_definition(ranked: list[Hit], judged: list[Evidence]) -> None:
    scores = score_query(ranked, judged)

    assert tuple(scores) == METRICS
    ndcg, mrr, _ = reference(ranked, judged, 10)
    assert scores[PRIMARY] == pytest.approx(ndcg)
    assert scores["mrr@10"] == pytest.approx(mrr)
    for k in (1, 5, 10, 20):
        assert scores[f"recall@{k}"] == pytest.approx(reference(ranked, judged, k)[2])
    assert all(0 <= value <= 1 for value in scores.values())


@settings(max_examples=100, deadline=None)
@given(
    st.permutations([f"d{i:02d}" for i in range(25)]),
    st.dictionaries(st.sampled_from([f"d{i:02d}" for i in range(40)]), st.integers(1, 4), min_size=1, max_size=14),
)
def test_whole_documents_score_as_in_trec_eval(ranking: list[str], relevance: dict[str, int]) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="no wheel for this platform")
    scores = score_query(
        [Hit(path, 0, 100) for path in ranking],
        [Evidence(path, None, None, gain) for path, gain in relevance.items()],
    )

    measures = {"ndcg_cut_10", "recall_1", "recall_5", "recall_10", "recall_20"}
    run = {path: float(-rank) for rank, path in enumerate(ranking)}
    theirs = pytrec_eval.RelevanceEvaluator({"q": relevance}, measures).evaluate({"q": run})["q"]
    first_ten = {path: score for path, score in run.items() if score > -10}
    reciprocal = pytrec_eval.RelevanceEvaluator({"q": relevance}, {"recip_rank"}).evaluate({"q": first_ten})["q"]
    assert scores["ndcg@10"] == pytest.approx(theirs["ndcg_cut_10"])
    assert scores["mrr@10"] == pytest.approx(reciprocal["recip_rank"])
    for k in (1, 5, 10, 20):
        reachable = min(k, len(relevance)) / len(relevance)
        assert scores[f"recall@{k}"] == pytest.approx(theirs[f"recall_{k}"] / reachable)


@pytest.mark.parametrize(
    ("hit", "found"),
    [
        (Hit("a.md", 0, 150), True),  # half of the evidence
        (Hit("a.md", 0, 149), False),
        (Hit("a.md", 190, 210), True),  # half of the hit
        (Hit("a.md", 190, 211), False),
        (Hit("a.md", 200, 300), False),  # touches only
        (Hit("b.md", 100, 200), False),
    ],
)
def test_a_hit_finds_half_or_lies_half_inside(hit: Hit, found: bool) -> None:
    assert finds(hit, Evidence("a.md", 100, 200)) is found


def test_a_hit_is_read_up_to_2400_characters() -> None:
    judged = [Evidence("a.md", 2400, 2500)]

    assert score_query([Hit("a.md", 0, 10_000)], judged)[PRIMARY] == 0
    assert score_query([Hit("a.md", 50, 10_000)], judged)[PRIMARY] == 1


def test_small_overlapping_chunks_earn_nothing_extra() -> None:
    judged = [Evidence("a.md", 0, 100), Evidence("b.md", 0, 100)]
    once = score_query([Hit("a.md", 0, 100)], judged)

    assert score_query([Hit("a.md", 0, 100), Hit("a.md", 10, 90), Hit("a.md", 20, 100)], judged) == once
    assert once["recall@10"] == 0.5


def test_one_hit_that_finds_more_than_a_rank_can_list_does_not_exceed_one() -> None:
    judged = [Evidence("a.md", 0, 50), Evidence("a.md", 50, 100), Evidence("a.md", 100, 150)]

    assert set(score_query([Hit("a.md", 0, 150)], judged).values()) == {1.0}


def test_evidence_without_relevance_is_no_evidence() -> None:
    good, bad = Evidence("a.md", 0, 100), Evidence("b.md", 0, 100, relevance=0)

    assert score_query([Hit("b.md", 0, 100), Hit("a.md", 0, 100)], [good, bad])["mrr@10"] == 0.5
    for judged in ([], [bad]):
        with pytest.raises(ValueError, match="without relevant evidence"):
            score_query([Hit("a.md", 0, 100)], judged)


@pytest.mark.parametrize(("start", "end"), [(5, None), (5, 5), (5, 4)])
def test_an_empty_span_is_refused(start: int, end: int | None) -> None:
    with pytest.raises(ValueError, match=r"a\.md"):
        Evidence("a.md", start, end)


# How long a busy machine takes to draw them says nothing.
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ranked=st.lists(hits(), max_size=20), judged=st.lists(evidence(), min_size=1, max_size=4))
def test_ranks_are_those_that_the_scores_come_from(ranked: list[Hit], judged: list[Evidence]) -> None:
    ranks = evidence_ranks(ranked, judged)
    for rank, piece in zip(ranks, judged, strict=True):
        found = [finds(hit.read(), piece) for hit in ranked]
        assert (rank is None) is not any(found)
        assert rank is None or found.index(True) == rank - 1
    first = min((rank for rank in ranks if rank is not None and rank <= 10), default=None)
    assert score_query(ranked, judged)["mrr@10"] == (0 if first is None else 1 / first)

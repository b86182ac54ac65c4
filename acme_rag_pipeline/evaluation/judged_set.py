"""`acme-rag evaluate`: all arms on any judged set as a table or as a page. Nothing is decided or recorded.

The store gets no more than a whole base model, where it has none, and vectors of the embedding cache.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from acme_rag_pipeline.evaluation.arms import BASE, BM25, CHAMPION, ArmResult, ArmRunner, metric_rows
from acme_rag_pipeline.evaluation.comparison import (
    ArmScores,
    Comparison,
    GateSettings,
    compare,
    compare_segments,
    units_needed,
)
from acme_rag_pipeline.evaluation.contest import segments_of
from acme_rag_pipeline.evaluation.contestants import Contest, arms_for, champion_arm, contest
from acme_rag_pipeline.evaluation.golden import JudgedQuery, golden_queries, judged_queries, not_usable
from acme_rag_pipeline.evaluation.metrics import PRIMARY
from acme_rag_pipeline.evaluation.query_sets import GOLDEN
from acme_rag_pipeline.evaluation.report import QuerySetReport, Report, render_report
from acme_rag_pipeline.evaluation.report_parts import arm_rows, query_changes, similarity_histograms, unit_noun
from acme_rag_pipeline.evaluation.words import counted
from acme_rag_pipeline.pairs.leaks import nearest_cosines
from acme_rag_pipeline.pairs.wording import query_key
from acme_rag_pipeline.retrieval.passage_encoder import embedding_cache, encoder_for
from acme_rag_pipeline.serving import decisions
from acme_rag_pipeline.settings import Settings, SettingsError
from acme_rag_pipeline.store.fingerprints import fingerprint
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import UpstreamMissing, data_versions, stored_detail
from acme_rag_pipeline.store.written_queries import written_queries
from acme_rag_pipeline.training.validation import MINIMUM_HEADINGS

_OTHER_QUESTIONS = (
    "training keeps away from the store's own golden questions only; these may be near to what it learned from"
)


@dataclass(frozen=True)
class JudgedComparison:
    """Every arm on one judged set, each compared with the base; nothing is decided.

    Attributes:
        folder: of the judged set; None: the golden set of the store.
        note: about queries that cannot be used, that were trained on or lie near to what was, or that are too few to tell anything.
        who: base, newest candidate, and what readers use today.
        results: the best arm first.
        gains: of each arm but the base, with its own 95 % interval, not adjusted for the number of arms.
        promoted: the arm that readers use.
        caveat: what holds for any questions but the store's own.
    """

    folder: Path | None
    queries: Sequence[JudgedQuery]
    note: str
    who: Contest
    results: Sequence[ArmResult]
    gains: Sequence[Comparison]
    promoted: str
    caveat: str = ""

    @property
    def units(self) -> dict[str, str]:
        """The unit of each query."""
        return {query.query_id: query.unit for query in self.queries}

    @property
    def champion_in_words(self) -> str:
        """What the arm `champion` is; empty where readers use one of the other arms."""
        if all(result.arm != CHAMPION for result in self.results):
            return ""
        champion = self.who.champion
        values = ", with the values it was judged with" if champion.fusion else ""
        return f"{CHAMPION}: what readers use today, model {champion.model_digest[:12]}, {champion.recipe}{values}"

    def table(self) -> dict[str, Any]:
        """The numbers as JSON values."""
        gains = {row.arm: {"difference": row.difference, "low": row.low, "high": row.high} for row in self.gains}
        arms = []
        for result in self.results:
            row: dict[str, Any] = {"arm": result.arm, "gain": gains.get(result.arm)}
            for metric in metric_rows(result, self.units):
                row[str(metric["metric"])] = {name: metric[name] for name in ("value", "low", "high")}
            arms.append(row)
        units = len(set(self.units.values()))
        note = "; ".join(filter(None, [self.note, self.caveat]))
        return {"queries": len(self.queries), "units": units, "note": note, "promoted": self.promoted, "arms": arms}


def compare_arms(store: Store, settings: Settings, folder: Path | None) -> JudgedComparison:
    """Score every arm.

    Args:
        store, settings: what is compared.
        folder: `queries.jsonl` and `qrels.jsonl`; default the golden set of the store.

    Raises:
        UpstreamMissing: the store has no base index yet.
        SettingsError: no query can be used.
    """
    if not store.warehouse.path.exists():  # a reader would create it
        raise UpstreamMissing(f"{store.root} holds no chunks yet: run `refresh` first")
    data_versions(store.warehouse, "chunks", "base_index")
    queries, note = (golden_queries(store), not_usable(store)) if folder is None else judged_queries(store, folder)
    if not queries:
        if folder is None:
            _check_golden(store, settings)
        raise SettingsError(
            "ACME_RAG_GOLDEN: no judged query can be used; give `--golden DIR` with queries.jsonl and qrels.jsonl"
            + (f". {note}" if note else "")
        )
    # The newest candidate was compared with the champion before it; readers may use something else since.
    runner = ArmRunner(store, settings)
    # Nor are these questions the ones that were written for the passages: hybrids know those here as they do when people search.
    who = replace(
        contest(store, settings),
        champion=decisions.champion_unrecorded(store, settings),
        golden_decides=True,
        fusion=runner.fusion,
    )
    results = [runner.run(arm, queries) for arm in arms_for(who, held_out=False)]
    means = {result.arm: sum(result.metric(PRIMARY).values()) for result in results}
    results.sort(key=lambda result: -means[result.arm])
    units = {query.query_id: query.unit for query in queries}
    base = next(_scores(result) for result in results if result.arm == BASE)
    gate = _gate(settings)
    near = _near_to_learned(store, settings, queries, who)
    note = "; ".join(filter(None, [note, _trained_on(store, queries, who), near, _too_few(set(units.values()), gate)]))
    gains = [compare(base, [_scores(r)], units, gate)[0] for r in results if r.arm != BASE]
    promoted = champion_arm(who, held_out=False)
    caveat = "" if _is_the_store_s_own(folder, settings) else _OTHER_QUESTIONS
    return JudgedComparison(folder, queries, note, who, results, gains, promoted, caveat)


def _check_golden(store: Store, settings: Settings) -> None:
    """Raise `SettingsError` where the store has no golden queries because nobody has named or resolved any."""
    if settings.golden is None:
        raise SettingsError(
            "ACME_RAG_GOLDEN: it is not set; name a folder with queries.jsonl and qrels.jsonl there or with `--golden DIR`"
        )
    if stored_detail(store.warehouse, "golden_queries", "source") is None:
        raise SettingsError(
            f"ACME_RAG_GOLDEN: {settings.golden} has not been read yet: run `retrain`, or give it as `--golden DIR`"
        )


def _trained_on(store: Store, queries: Sequence[JudgedQuery], who: Contest) -> str:
    with store.warehouse.read() as connection:
        rows = connection.execute(
            "SELECT query, side = 'validation' FROM training_pairs WHERE dropped_because IS NULL UNION ALL "
            "SELECT query, true FROM heading_queries WHERE (SELECT count(*) FROM heading_queries) >= ?",
            # Fewer choose nothing.
            [MINIMUM_HEADINGS],
        ).fetchall()
        models = sorted(
            {encoder.model_digest for encoder in (who.candidate, who.champion.encoder) if encoder is not None}
        )
        trained = connection.execute(
            "SELECT DISTINCT query_key FROM trained_pairs JOIN models USING (training_key) WHERE list_contains(?, model_digest) "
            "AND query_key IS NOT NULL",
            [models],
        ).fetchall()
    chose = {query_key(query) for query, validation in rows if validation}
    learned = {query_key(query) for query, validation in rows if not validation} | {row[0] for row in trained}
    asked = [query_key(query.query) for query in queries]
    notes = []
    if shared := sum(key in learned for key in asked):
        notes.append(
            f"{shared} of {counted(len(queries), 'queries')} stand among training pairs too: a tuned model learned them, so "
            "its gain here says little about others"
            + ("; the hybrid arms find them beside their passages" if who.fusion.expansion_weight else "")
        )
    if shared := sum(key in chose for key in asked):
        notes.append(
            f"{shared} of {counted(len(queries), 'queries')} stand in the validation share too: no model learned them, but "
            "they chose the weights of a tuned one, so they flatter it"
        )
    return "; ".join(notes)


def _near_to_learned(store: Store, settings: Settings, queries: Sequence[JudgedQuery], who: Contest) -> str:
    """How many of the queries say nearly what a training query says, or one that the hybrids search, in other words.

    By the measure with which training keeps away from golden queries. Vectors of training queries are looked up, never
    computed: where some are missing that is said.
    """
    with store.warehouse.read() as connection:
        kept = connection.execute("SELECT query, side FROM training_pairs WHERE dropped_because IS NULL").fetchall()
    searched = written_queries(store.warehouse).values() if who.fusion.expansion_weight else ()
    groups = (
        (
            "training queries",
            {query for query, side in kept if side != "validation"},
            "a tuned model learned from questions like these",
        ),
        (
            "queries that the hybrid arms search beside the passages",
            {query for written in searched for query in written},
            "these arms find their passages by them",
        ),
    )
    if not any(texts for _, texts, _ in groups):
        return ""
    cache, least = embedding_cache(store), settings.pairs.golden_similarity
    asked, _ = cache.queries(encoder_for(store, who.base.model_digest, settings), [query.query for query in queries])
    notes = []
    for what, texts, so in groups:
        # Those of one wording are counted apart.
        keys = {query_key(text) for text in texts}
        other = [vector for query, vector in zip(queries, asked, strict=True) if query_key(query.query) not in keys]
        known = cache.known_queries(who.base.model_digest, sorted(texts))
        near = int((nearest_cosines(other, list(known.values())) >= least).sum()) if other and known else 0
        if near:
            lie = "lies" if near == 1 else "lie"
            notes.append(
                f"{near} of {counted(len(queries), 'queries')} {lie} near to {what} (cosine of {least:g} or more by the base "
                f"model): {so}"
            )
        if missing := len(texts) - len(known):
            notes.append(f"{missing} of {len(texts)} {what} have no stored vector and were not compared for nearness")
    return "; ".join(notes)


def _too_few(units: Collection[str], gate: GateSettings) -> str:
    needed = units_needed(1, gate)
    if len(units) >= needed:
        return ""
    few = counted(len(units), unit_noun(units))
    return f"with {few} no difference can be told from chance; at least {needed} are needed"


def comparison_page(store: Store, settings: Settings, done: JudgedComparison) -> str:
    """The report page of a judged set: the base before, what readers use today after.

    Where readers use the base, the best other arm but BM25 is shown against it.
    """
    promoted = done.promoted
    others = [result.arm for result in done.results if result.arm not in (BASE, BM25)]
    subject = others[0] if promoted == BASE else promoted
    before, after = (next(r for r in done.results if r.arm == arm) for arm in (BASE, subject))
    gain = next(row for row in done.gains if row.arm == subject)
    shown = next(arm.encoder for arm in arms_for(done.who, held_out=False) if arm.name == subject) or done.who.base
    segments = segments_of(done.queries)
    noun = unit_noun(done.units.values())
    part = QuerySetReport(
        name=GOLDEN if done.folder is None else "judged",
        queries=len(done.queries),
        units=len(set(done.units.values())),
        arms=arm_rows(done.results, done.units),
        versus_champion=done.gains,
        segments=compare_segments(_scores(before), _scores(after), done.units, segments, _gate(settings)),
        changes=query_changes(store, settings, done.queries, before, after),
        readers="" if subject == promoted else promoted,
        unit_noun=noun,
        note=done.note,
    )
    of_readers = subject == promoted
    models = {BASE: done.who.base, "promoted model" if of_readers else "other model": shown}
    return render_report(
        Report(
            headline=f"{subject} {_outcome(gain, _gate(settings))} base on these questions",
            verdict="comparison",
            reason=(
                f"nDCG@10 is {gain.champion_mean:.3f} with base and {gain.challenger_mean:.3f} with {subject} "
                f"({gain.difference:+.3f}, 95 % interval {gain.low:+.3f} to {gain.high:+.3f}) on "
                f"{counted(part.queries, 'questions')} over {counted(part.units, noun)}. Readers use {promoted} today. This is a comparison: it decides nothing."
            ),
            champion=BASE,
            champion_digest=done.who.base.model_digest,
            champion_label="base",
            candidate=subject,
            candidate_digest=shown.model_digest,
            candidate_label="promoted" if of_readers else "best other arm",
            created_at=datetime.now(UTC),
            query_sets=[part],
            adjusted=False,
            units_needed=units_needed(1, _gate(settings)),
            similarities=similarity_histograms(store, settings, models, done.queries) if shown != done.who.base else [],
            lineage=data_versions(store.warehouse, "documents", "chunks")
            | {
                "judged questions": fingerprint(
                    [(q.query_id, q.query, [astuple(e) for e in q.evidence]) for q in done.queries]
                )
            },
            caveats=[f"{done.caveat[0].upper()}{done.caveat[1:]}."] if done.caveat else [],
        )
    )


def _outcome(gain: Comparison, gate: GateSettings) -> str:
    if gain.significant:
        return "does better than"
    worse = gain.high < 0 and gain.units >= units_needed(1, gate)
    return "does worse than" if worse else "is not clearly different from"


def _scores(result: ArmResult) -> ArmScores:
    return ArmScores(result.arm, result.metric(PRIMARY))


def _is_the_store_s_own(folder: Path | None, settings: Settings) -> bool:
    return folder is None or (settings.golden is not None and folder.resolve() == settings.golden.resolve())


def _gate(settings: Settings) -> GateSettings:
    """The gate's settings, at the level of the intervals that are shown here: nothing is decided."""
    return GateSettings(**settings.gate.model_dump() | {"level": 0.95})

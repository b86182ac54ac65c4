"""How often the gate promotes arms that are no better, and how often it sees a real gain.

    python benchmarks/gate_simulation.py [--repetitions 2000] [--challengers 3] [--processes 2]

Questions come in documents of unequal size (geometric, 2.6 on average) whose questions succeed and fail together. In
every kind of "no true difference" the mean difference over all questions is 0:

- gaussian: every question's difference is normal with the stated spread and intra-unit correlation;
- one large document: the same, but one document holds half of all questions;
- ranks: both arms rank the evidence at exchangeable random ranks, so that most differences are exactly 0 and the rest
  are as lumpy as nDCG@10 really is;
- few documents gain: one document in ten gains 0.4 on each question, all others lose a little;
- skewed: most questions gain a little and few lose much; with few units the sample may hold none of the losses;
- zero-inflated: one question in five changes at all, and of those three gain a little and one loses much;
- few documents lose: one document in ten loses 0.4 on each question, all others gain a little;
- rare documents lose: one in 17 loses 0.6, all others gain a little;
- long-tailed losses: each document's loss is log-normal (at most 0.9), so that the typical one gains 0.05;
- skewed in documents: as skewed, but the losses come together in a few documents.

Power is the share of promotions with a true gain of 0.05 (gaussian).

Two more questions are asked of the gate. How often does it promote models that gain nothing, where the questions of their
own generator flatter them by 0.05? And how often is any of many candidates promoted that are tried one after the other on
the same golden questions (`--nights`), each as good as the first champion: the 2.5 % hold for each of them, not for all?
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np

from acme_rag_pipeline.evaluation.comparison import compare
from acme_rag_pipeline.evaluation.gate import PROMOTED, ArmScores, EvidenceKind, GateSettings, decide
from acme_rag_pipeline.evaluation.intervals import gain_p

UNIT_COUNTS = (5, 12, 40, 100)
QUERIES_PER_UNIT = 2.6
LOG_LOSS, LOG_SPREAD, LARGEST_LOSS = -2.5, 1.0, 0.9

Draw = Callable[[np.random.Generator, "np.ndarray", int], "np.ndarray"]
"""(generator, unit of each question, challengers) -> scores of champion and challengers, one arm a row."""

Sizes = Callable[[np.random.Generator, int], "np.ndarray"]
"""(generator, number of units) -> number of questions of each unit."""


def gaussian(
    rng: np.random.Generator, unit: np.ndarray, challengers: int, spread: float, correlation: float, gain: float = 0.0
) -> np.ndarray:
    """Differences with the stated standard deviation and correlation inside a unit, around ``gain``."""
    shared = rng.normal(size=(challengers, unit.max() + 1))[:, unit]
    own = rng.normal(size=(challengers, unit.size))
    differences = gain + spread * (math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own)
    return np.vstack([np.full(unit.size, 0.5), 0.5 + differences])


def ranks(rng: np.random.Generator, unit: np.ndarray, challengers: int) -> np.ndarray:
    """nDCG@10 of exchangeable arms: ranks of one piece of evidence, hard documents and questions hard for all arms."""
    arms, units = challengers + 1, unit.max() + 1
    hard = rng.normal(0.6, 0.7, units)[unit] + rng.normal(0, 0.9, unit.size)
    logarithm = hard + rng.normal(0, 0.35, (arms, units))[:, unit] + rng.normal(0, 0.35, (arms, unit.size))
    rank = np.maximum(1, np.floor(np.exp(logarithm)))
    return np.where(rank <= 10, 1 / np.log2(rank + 1), 0.0)


def skewed(rng: np.random.Generator, unit: np.ndarray, challengers: int, correlation: float = 1 / 11) -> np.ndarray:
    """One question in seven loses 0.3 to 0.8, more in some documents; the others gain enough to make up for it."""
    share, loss = 0.15, 0.55
    losing = _chance(rng, unit, challengers, share, correlation)
    loses = rng.random(losing.shape) < losing
    gains = rng.exponential(share * loss / (1 - share), losing.shape)
    return np.vstack([np.full(unit.size, 0.5), 0.5 + np.where(loses, -rng.uniform(0.3, 0.8, losing.shape), gains)])


def zero_inflated(rng: np.random.Generator, unit: np.ndarray, challengers: int) -> np.ndarray:
    """One question in five changes, more in some documents: 3 of 4 of them gain 0.1 to 0.3, the others lose 0.3 to 0.9."""
    changing = _chance(rng, unit, challengers, share=0.2, correlation=1 / 3)
    losses, gains = -rng.uniform(0.3, 0.9, changing.shape), rng.uniform(0.1, 0.3, changing.shape)
    changes = np.where(rng.random(changing.shape) < 0.25, losses, gains)
    return np.vstack([np.full(unit.size, 0.5), 0.5 + np.where(rng.random(changing.shape) < changing, changes, 0.0)])


def few_documents(
    rng: np.random.Generator, unit: np.ndarray, challengers: int, change: float, share: float = 0.1
) -> np.ndarray:
    """One document in ten changes by ``change`` on each of its questions; all others make up for it."""
    changes = (rng.random((challengers, unit.max() + 1)) < share)[:, unit]
    noise = rng.normal(0, 0.05, changes.shape)
    others = -change * share / (1 - share)
    return np.vstack([np.full(unit.size, 0.5), 0.5 + np.where(changes, change, others) + noise])


def long_tailed(rng: np.random.Generator, unit: np.ndarray, challengers: int) -> np.ndarray:
    """A log-normal loss of each document, at most ``LARGEST_LOSS``, around a mean of 0: it holds for all its questions."""
    losses = np.minimum(rng.lognormal(LOG_LOSS, LOG_SPREAD, (challengers, unit.max() + 1)), LARGEST_LOSS)[:, unit]
    noise = rng.normal(0, 0.05, losses.shape)
    return np.vstack([np.full(unit.size, 0.5), 0.5 + _mean_loss() - losses + noise])


def _mean_loss() -> float:
    """Mean of a log-normal variable that is cut at ``LARGEST_LOSS``."""
    top = (math.log(LARGEST_LOSS) - LOG_LOSS) / LOG_SPREAD
    below = math.exp(LOG_LOSS + LOG_SPREAD**2 / 2) * _normal_cdf(top - LOG_SPREAD)
    return below + LARGEST_LOSS * (1 - _normal_cdf(top))


def _normal_cdf(value: float) -> float:
    return (1 + math.erf(value / math.sqrt(2))) / 2


def _chance(
    rng: np.random.Generator, unit: np.ndarray, challengers: int, share: float, correlation: float
) -> np.ndarray:
    """A chance for each question that its document shares (beta), with the stated mean and intra-unit correlation."""
    total = 1 / correlation - 1
    return rng.beta(total * share, total * (1 - share), (challengers, unit.max() + 1))[:, unit]


def geometric(rng: np.random.Generator, units: int) -> np.ndarray:
    """Questions of each document, 2.6 on average."""
    return rng.geometric(1 / QUERIES_PER_UNIT, units)


def one_large(rng: np.random.Generator, units: int) -> np.ndarray:
    """As ``geometric``, but the first document holds about half of all questions."""
    sizes = geometric(rng, units)
    sizes[0] = max(1, sizes[1:].sum())
    return sizes


def promoted_share(
    draw: Draw,
    units: int,
    challengers: int,
    repetitions: int,
    seed: int = 0,
    sizes: Sizes = geometric,
    significant_only: bool = False,
    flattered: bool = False,
) -> float:
    """Share of simulated decisions that promote a challenger.

    Args:
        draw: scores of the arms.
        units: number of documents.
        challengers: arms beside the champion.
        repetitions: number of decisions.
        seed: of all draws.
        sizes: questions of each document.
        significant_only: count comparisons without a significant gain as not promoted and do not decide on them. Most of
            a decision's time goes into the gain that could have been seen.
        flattered: the challengers' models learned from questions of the generator that wrote all of these.
    """
    kind: EvidenceKind = "held_out" if flattered else "golden"
    rng, settings, promotions = np.random.default_rng([seed, units]), GateSettings(), 0
    for _ in range(repetitions):
        unit = np.repeat(np.arange(units), sizes(rng, units))
        scores = draw(rng, unit, challengers)
        ids = [f"q{i:04d}" for i in range(unit.size)]
        arms = [
            ArmScores(f"arm{i}", dict(zip(ids, row.tolist(), strict=True)), flattered=flattered and i > 0)
            for i, row in enumerate(scores)
        ]
        documents = {i: f"d{u:03d}" for i, u in zip(ids, unit.tolist(), strict=True)}
        styles = dict(zip(ids, rng.choice(["question", "keywords", "situation"], unit.size).tolist(), strict=True))
        # A shortcut without an effect on the outcome: the interval's own p-value is part of what the gate asks for.
        labels = list(map(str, unit.tolist()))
        if min(gain_p(gains, labels) for gains in (scores[1:] - scores[0]).tolist()) > settings.tail:
            continue
        if significant_only and not any(row.significant for row in compare(arms[0], arms[1:], documents, settings)):
            continue
        decision = decide(arms[0], arms[1:], documents, {"style": styles}, settings, kind)
        promotions += decision.verdict == PROMOTED
    return promotions / repetitions


def promotions_in_a_row(units: int, nights: int, spread: float, correlation: float, seed: int) -> int:
    """Promotions among candidates of so many nights, none better than another, all on the same questions.

    Each night brings one candidate whose differences from a true mean of 0.5 have the stated spread and intra-unit
    correlation; the champion is the last one that was promoted.
    """
    rng, settings, promotions = np.random.default_rng([seed, units, nights]), GateSettings(), 0
    unit = np.repeat(np.arange(units), geometric(rng, units))
    ids = [f"q{i:04d}" for i in range(unit.size)]
    documents = {i: f"d{u:03d}" for i, u in zip(ids, unit.tolist(), strict=True)}
    # The spread is that of the difference of two.
    scores = gaussian(rng, unit, nights + 1, spread / math.sqrt(2), correlation)[1:]
    champion = scores[0]
    for candidate in scores[1:]:
        if gain_p((candidate - champion).tolist(), list(map(str, unit.tolist()))) > settings.tail:
            continue
        arms = [
            ArmScores(name, dict(zip(ids, row.tolist(), strict=True)))
            for name, row in (("a", champion), ("b", candidate))
        ]
        if decide(arms[0], arms[1:], documents, {}, settings, "golden").verdict == PROMOTED:
            champion, promotions = candidate, promotions + 1
    return promotions


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--challengers", type=int, default=3)
    parser.add_argument("--spread", type=float, default=0.3, help="standard deviation of a question's difference")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nights", type=int, default=50, help="candidates in a row on the same golden questions")
    options = parser.parse_args()

    nulls: list[tuple[str, Draw]] = [
        (f"gaussian, spread {options.spread}, correlation {r}", partial(gaussian, spread=options.spread, correlation=r))
        for r in (0.0, 0.3, 0.8)
    ]
    nulls += [
        ("ranks", ranks),
        ("few documents gain", partial(few_documents, change=0.4)),
        ("skewed", skewed),
        ("zero-inflated", zero_inflated),
        ("few documents lose", partial(few_documents, change=-0.4)),
        ("rare documents lose", partial(few_documents, change=-0.6, share=0.06)),
        ("long-tailed losses", long_tailed),
        ("skewed in documents (stress)", partial(skewed, correlation=0.5)),
    ]
    large: list[tuple[str, Draw]] = [
        ("one large document, gaussian, corr. 0.3", partial(gaussian, spread=options.spread, correlation=0.3)),
        ("one large document, skewed", skewed),
    ]
    gains: list[tuple[str, Draw]] = [
        (f"spread {s}, correlation {r}", partial(gaussian, spread=s, correlation=r, gain=0.05))
        for s in (0.2, options.spread)
        for r in (0.0, 0.3, 0.8)
    ]
    error = math.sqrt(0.025 * 0.975 / options.repetitions)
    with ProcessPoolExecutor(options.processes) as pool:
        print("Promotions without a true difference: at most 2.5 % wanted")
        print(f"({options.repetitions} decisions a cell, standard error at 2.5 %: {100 * error:.2f} %)")
        # Four: the base, its hybrid and the candidate's two arms against an earlier champion.
        for challengers in dict.fromkeys((1, options.challengers, 4)):
            print(f"{challengers} challengers")
            _table(pool, nulls, UNIT_COUNTS, challengers, options.repetitions, options.seed)
            _table(pool, large, UNIT_COUNTS, challengers, options.repetitions, options.seed, one_large)
        for challengers in (1, options.challengers):
            print(f"\nPromotions with a true gain of 0.05 in all of {challengers} challengers (power)")
            _table(pool, gains, (*UNIT_COUNTS[1:], 200), challengers, options.repetitions // 4, options.seed)
        print("\nPromotions of models that gain nothing where the questions flatter them by 0.05")
        _table(pool, gains, UNIT_COUNTS, options.challengers, options.repetitions, options.seed, flattered=True)
        print(f"\nAny promotion among {options.nights} candidates in a row that are no better, on the same questions")
        for correlation in (0.0, 0.3, 0.8):
            shares = []
            for units in UNIT_COUNTS[1:]:
                run = partial(promotions_in_a_row, units, options.nights, options.spread, correlation)
                found = list(pool.map(run, range(options.repetitions // 10)))
                shares.append((sum(count > 0 for count in found) / len(found), sum(found) / len(found)))
            cells = "".join(f"{100 * share:>7.1f} % ({mean:.2f})" for share, mean in shares)
            print(f"{f'spread {options.spread}, correlation {correlation}':<42}{cells}", flush=True)


def _table(
    pool: ProcessPoolExecutor,
    rows: list[tuple[str, Draw]],
    columns: tuple[int, ...],
    challengers: int,
    repetitions: int,
    seed: int,
    sizes: Sizes = geometric,
    *,
    flattered: bool = False,
) -> None:
    print(f"{'units':<42}" + "".join(f"{units:>9}" for units in columns))
    cells = [
        [
            pool.submit(promoted_share, draw, units, challengers, repetitions, seed, sizes, flattered=flattered)
            for units in columns
        ]
        for _, draw in rows
    ]
    for (name, _), row in zip(rows, cells, strict=True):
        print(f"{name:<42}" + "".join(f"{100 * cell.result():>7.2f} %" for cell in row), flush=True)


if __name__ == "__main__":
    main()

"""What a run of an LLM may use, what came of it, and what it would cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from acme_rag_pipeline.llm.reply import CUT_OFF, NO_COMPLETION, RIGHT_ADDRESS, StopReason
from acme_rag_pipeline.llm.request import LLMConnection, Messages

# About what a query and the JSON around it take; only a guess until the server has counted.
TOKENS_A_QUERY = 40
_COMPLETION_TOKENS = 3 * TOKENS_A_QUERY
_TOKENS_AROUND_A_MESSAGE = 4
# Has passages asked about again that a model found nothing to ask about.
ASK_EMPTY_AGAIN = "acme-rag pairs ask-again --empty"
LONGER_ANSWERS = (
    "ACME_RAG_PAIRS__EXTRA_BODY can let the server write longer answers, or think less; a change of it asks about every "
    "passage again, one at the server itself does not."
)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may use at most; None: any.

    Attributes:
        max_calls: HTTP requests, failed ones too; never exceeded.
        max_tokens: Prompt and completion tokens; a request starts only if its estimate fits, beside others four times.
    """

    max_calls: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationOutcome:
    """What came of a run; `answered + failed + left` is the number of prompts.

    Attributes:
        answered: Prompts with an answer, an empty list included.
        empty: Of them, those with an empty list: the model found nothing to ask.
        failed: Prompts that were given up for this run; the next one asks them again.
        left: Prompts that were not reached because the run stopped.
        calls: HTTP requests.
        prompt_tokens: Used.
        completion_tokens: Used.
        seconds: Wall clock.
        stopped: Why the run ended early; None: it did not.
        sentence: All of it for a person.
    """

    answered: int
    empty: int
    failed: int
    left: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    stopped: StopReason | None
    sentence: str


@dataclass(frozen=True, slots=True)
class TokenEstimate:
    """Tokens that prompts would take, if each is answered at once."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total(self) -> int:
        """Both kinds together."""
        return self.prompt_tokens + self.completion_tokens


def estimate(prompts: Iterable[Messages]) -> TokenEstimate:
    """Tokens that the prompts would take, roughly: for a dry run, before anything is sent."""
    found = [estimate_prompt(messages) for messages in prompts]
    return TokenEstimate(sum(one.prompt_tokens for one in found), sum(one.completion_tokens for one in found))


def estimate_prompt(messages: Messages) -> TokenEstimate:
    """Tokens of one prompt and its answer: four ASCII characters a token, two bytes of anything else."""
    tokens = 0.0
    for message in messages:
        content = message["content"]
        ascii_count = sum(map(str.isascii, content)) if not content.isascii() else len(content)
        other = len(content.encode("utf-8", "surrogatepass")) - ascii_count
        tokens += ascii_count / 4 + other / 2 + _TOKENS_AROUND_A_MESSAGE
    return TokenEstimate(round(tokens), _COMPLETION_TOKENS)


def sentence(
    outcome: GenerationOutcome,
    detail: str,
    failure: str,
    connection: LLMConnection,
    budget: Budget,
    *,
    known: bool = False,
) -> str:
    """The outcome for a person.

    Args:
        outcome: Its `sentence` is not looked at.
        detail: That of the reply that ended the run.
        failure: Why prompts failed, most often.
        connection: The server.
        budget: Of the run.
        known: Answers of this model are stored: it works, and so does the address.
    """
    total = outcome.answered + outcome.failed + outcome.left
    counts = f"{outcome.answered} of {total} prompts answered with {outcome.calls} calls"
    if outcome.empty:
        counts += f", {outcome.empty} with no question"
    if outcome.failed:
        counts += f", {outcome.failed} failed" + (f" (most often: {failure})" if failure else "")
    hint = f" {LONGER_ANSWERS}" if CUT_OFF in f"{detail} {failure}" else ""
    if not (known or outcome.answered) and NO_COMPLETION in f"{detail} {failure}":
        hint += f" {RIGHT_ADDRESS}"
    if outcome.stopped is None:
        if known and outcome.failed == total:
            counts += f": the {f'{total} passages left get' if total > 1 else 'passage left gets'} no usable answer"
        return f"{counts}.{hint}"
    because = f" ({detail})" if detail else ""
    server = f"the LLM server {connection.shown_url}"
    limits = [
        f"{n} {unit}" for n, unit in ((budget.max_calls, "calls"), (budget.max_tokens, "tokens")) if n is not None
    ]
    # Answers under way at the stop may be empty, too.
    unusable = (
        f"none of the first {outcome.answered} answers of the model {connection.model!r} at {server} holds a question: "
        f"use another model, or mend the server and run `{ASK_EMPTY_AGAIN}`"
        if outcome.empty and outcome.empty == outcome.answered
        else f"no answer of the model {connection.model!r} at {server} can be used{because}"
    )
    reason = {
        "unreachable": f"{server} cannot be reached or does not work{because}",
        "unauthorised": f"{server} refuses the key{because}",
        "model_not_found": f"{server} does not know the model {connection.model!r}, or the address is wrong{because}",
        "extra_body": f"{server} refuses {detail}",
        "quota": f"the quota of the account at {server} is used up{because}",
        "rate_limited": f"{server} allows no more requests for now{because}",
        "unusable": unusable,
        "failing": f"too many prompts in a row failed at {server}{because}",
        "budget": f"the budget of {' and '.join(limits)} does not reach further",
    }[outcome.stopped]
    return f"Stopped: {reason}; {counts}, {outcome.left} left for the next run.{hint}"

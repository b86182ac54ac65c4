"""A prompt of a run: what it met so far, and when it is asked again."""

from __future__ import annotations

from dataclasses import dataclass, field

from acme_rag_pipeline.llm.request import Messages
from acme_rag_pipeline.pairs.llm_outcome import TokenEstimate


@dataclass(slots=True)
class Job:
    """A prompt on its way to an answer."""

    prompt_hash: str
    messages: Messages
    estimate: TokenEstimate
    faults: int = 0
    waited: float = 0.0
    limited: int = 0
    bad_answers: int = 0
    complaint: str | None = None
    least_format: int = 0

    def to_send(self) -> Messages:
        """The messages; for a repair, the system message also says what was wrong with the answer before.

        The bad answer itself is not sent back: it may repeat what a hostile passage told the model to say, and
        instructions stand in the system message alone.
        """
        if self.complaint is None:
            return self.messages
        system, *data = self.messages
        note = f"\n\nYour previous answer was rejected: {self.complaint}. Answer with JSON in the form above only."
        return [{**system, "content": system["content"] + note}, *data]


@dataclass(order=True, slots=True)
class Retry:
    """A prompt that waits for its next attempt; the one that is ready first sorts first."""

    ready_at: float
    number: int
    job: Job = field(compare=False)

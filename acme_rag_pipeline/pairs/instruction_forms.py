"""Sentences that tell a reader what to do, turned into the questions of that reader: conditions, purposes, duties.

Rules over surface forms, as in `question_forms`.
"""

from __future__ import annotations

import re

from acme_rag_pipeline.pairs.plain_text import words
from acme_rag_pipeline.pairs.question_forms import (
    ACTIONS,
    AUXILIARIES,
    SUBJECTS,
    Form,
    first_person,
    lower_first,
    starts_with_action,
)

_SUBORDINATE = SUBJECTS | {"how", "if", "that", "what", "when", "where", "whether", "which", "who"}
_CLAUSE_END = re.compile(r"\s*(?:[,;(–—]|:(?!\d)|\s-\s|\b(?:and then|so that|because|which|unless)\b)")
# What a clause goes on after, in a list or in what the markup hid; capitals end names: "Annex A".
_NEVER_LAST = "a an and but if including my nor or our than the their unless whether your"
# At the end of a sentence they may stand: "what the fees are", "the people I work with".
_SELDOM_LAST = """about am any are as at be because been being by can could during each either for from had has have in into is may must
neither not of on should since such that these they this those to under until was we were when where which who will with
within without would I"""
_HALF = re.compile(rf"(?:^|\s)(?:{'|'.join(_NEVER_LAST.split())})[\"”“]?$")
_HALF_BEFORE_MORE = re.compile(rf"(?:^|\s)(?:{'|'.join((_NEVER_LAST + ' ' + _SELDOM_LAST).split())})[\"”“]?$")
_ANNOUNCES = re.compile(
    r"\b(?:any of|below|both|either|following|follows|one of|these|this)\b(?:\s\S+){0,6}$", re.IGNORECASE
)
_CONDITION = re.compile(
    r"^(?P<lead>if|when|once|before|after)\s+(?!(?:that|this|then|which)\b)(?P<clause>[^,;:]{6,160}),\s",
    re.IGNORECASE,
)
_PURPOSE = re.compile(r"^(?:in order )?to\s+(?P<verb>[a-z]+)\s+(?P<rest>[^,;:]{3,140}),\s", re.IGNORECASE)
_MODAL = re.compile(
    r"\byou\s+(?P<modal>(?:can|may|must|should) not|can|may|cannot|can['’]t|must|should|need to|have to|will need to|are required to)\s+"
    r"(?:(?:also|always|first|just|now|occasionally|of course|often|probably|simply|sometimes|still|then|usually)\s+)*+"
    # "You may wish to" and "you can see" permit nothing.
    r"(?!(?:find|imagine|need|not|or|see|think|to|want|wish)\b)(?P<rest>(?:[^.;:!?]|(?<=\d)[.:](?=\d)){6,200})",
    re.IGNORECASE,
)
_MODAL_QUESTIONS = {
    "can": "Can I", "may": "Can I", "cannot": "Can I", "can't": "Can I", "can not": "Can I",
    "may not": "Am I allowed to", "must not": "Am I allowed to", "should not": "Am I allowed to",
    "must": "Do I have to", "should": "Should I", "need to": "Do I need to", "have to": "Do I have to",
    "will need to": "Will I need to", "are required to": "Am I required to",
}  # fmt: skip
# What "you may" says of the reader: what is possible for them and what can happen to them, before what they may do.
_POSSIBLE = (
    (re.compile(r"be able to (?!do so\b|if\b)", re.IGNORECASE), "Can I "),
    (re.compile(r"be (?=(?:allowed|eligible|entitled|exempt|permitted|reimbursed)\b)", re.IGNORECASE), "Am I "),
    (re.compile(r"have to ", re.IGNORECASE), "Do I have to "),
)
_HAPPENS = re.compile(r"(?:be|have|become|encounter|experience|feel|hear|know|like|notice|wonder)\b", re.IGNORECASE)


def sentence_forms(sentence: str) -> list[Form]:
    """Questions that a sentence answers: conditions, purposes, permissions and duties."""
    forms: list[Form] = []
    if match := _PURPOSE.match(sentence):
        if match["verb"].lower() in ACTIONS:
            task = first_person(f"{match['verb'].lower()} {match['rest']}")
            forms.append(Form(f"How do I {task}?", "question"))
            forms.append(Form(f"I want to {task}, what do I have to do?", "situation"))
    elif match := _CONDITION.match(sentence):
        clause = first_person(match["clause"])
        lead = match["lead"].lower()
        forms.append(Form(f"What should I do {lead} {lower_first(clause)}?", "question"))
        if lead == "if" and re.match(r"(?:I|I'm|I've|my)\b", clause):
            forms.append(Form(f"{clause[0].upper()}{clause[1:]}, what now?", "situation"))
    if match := _MODAL.search(sentence):
        clause, is_whole = _first_clause(match["rest"] + sentence[match.end() :][:1])
        asked = _opened(match["modal"].lower().replace("’", "'"), first_person(clause))
        if is_whole and asked and len(words(clause)) >= 3:
            forms.append(Form(f"{asked}?", "question"))
    elif not forms and starts_with_action(sentence):
        clause, is_whole = _first_clause(sentence)
        task = first_person(lower_first(clause))
        if is_whole and 4 <= len(words(task)) <= 14 and not _is_statement(task):
            forms.append(Form(f"How do I {task}?", "question"))
    return forms


def _first_clause(text: str) -> tuple[str, bool]:
    """What stands before the first comma, colon or "because", and whether it is whole without what follows."""
    end = _CLAUSE_END.search(text)
    clause = text[: end.start()] if end else text.rstrip(".!?;")
    # "Post it in .": a link stood before the point.
    ends_sentence = end is None and len(clause) < len(text) and not clause.endswith(" ")
    half = _HALF if ends_sentence else _HALF_BEFORE_MORE
    clause = clause.rstrip(" .!?;")
    before_list = end is not None and end[0].strip() == ":"
    return clause, not (half.search(clause) or (before_list and _ANNOUNCES.search(clause)))


def _opened(modal: str, rest: str) -> str | None:
    """The question whether the reader can, may or must do something; None for what only may happen to them."""
    if modal in ("can", "may", "should", "cannot", "can not", "can't", "may not", "should not"):
        for pattern, opening in _POSSIBLE:
            if (match := pattern.match(rest)) and (opening != "Do I have to " or modal in ("may", "may not")):
                return f"{opening}{rest[match.end() :]}"
        if modal in ("may", "may not") and _HAPPENS.match(rest):
            return None
    return f"{_MODAL_QUESTIONS[modal]} {rest}"


def _is_statement(task: str) -> bool:
    """Whether a sentence only seems to tell what to do: "Work from another country needs a request"."""
    for word in map(str.lower, words(task)[1:]):
        if word in _SUBORDINATE:
            return False
        if word in AUXILIARIES or word == "needs":
            return True
    return False

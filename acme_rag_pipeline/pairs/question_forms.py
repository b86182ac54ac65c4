"""English headings and sentences turned into the questions that they answer.

Rules over surface forms, after Heilman and Smith, "Good Question! Statistical Ranking for Question Generation"
(2010), kept to patterns that need no parser. Text in other languages matches none of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from acme_rag_pipeline.pairs.passage import Style
from acme_rag_pipeline.pairs.plain_text import STOP_WORDS, words


def _set(words_of_it: str) -> frozenset[str]:
    return frozenset(words_of_it.split())


_ACTION_WORDS = """
accept access activate add adjust apply approve archive ask assign attend book build buy calculate call cancel
change check choose claim clean clear close collect complete configure confirm connect contact convert copy create
delete deploy disable donate download edit enable end enroll ensure enter escalate establish export file fill find
fix follow handle hire identify implement import improve include insert inspect install interview invite join
launch learn leave link log maintain manage measure merge migrate monitor move onboard open order organize pay plan
post prepare print process propose protect provide publish purchase read receive record recover register reinstall
remove renew rent replace report request reschedule reserve reset resolve respond restart restore return review run
save schedule search secure select send set share sign start stop store submit switch sync test track train transfer
troubleshoot turn uninstall unlock update upgrade upload verify view visit work write
"""
ACTIONS = frozenset(_ACTION_WORDS.split())
_FIRST_PERSON = {
    "you are": "I am", "you were": "I was",
    "you": "I", "your": "my", "yours": "mine", "yourself": "myself", "you're": "I'm", "you’re": "I'm",
    "you've": "I've", "you’ve": "I've", "you'll": "I'll", "you’ll": "I'll", "you'd": "I'd", "you’d": "I'd",
}  # fmt: skip
_SECOND_PERSON = re.compile(
    r"\b(?:you are|you were|you|your|yours|yourself|you['’](?:re|ve|ll|d))\b(?!['’])", re.IGNORECASE
)
# After these "you" is an object, and so it is before words that no predicate begins with ("gives you the").
_BEFORE_ME = _set(
    "about against allow allows around ask asked asks at between by for from gave give gives helps let lets near of "
    "reminds send sends sent tell tells to told towards with without"
)
_AFTER_ME = re.compile(
    r"\s*(?:[.,;:!?)]|$)|\s+(?:a|about|an|any|as|at|back|by|for|from|how|if|in|into|of|on|that|the|to|what|when"
    r"|where|whether|which|who|why|with|your)\b",
    re.IGNORECASE,
)
_QUESTION_START = re.compile(
    r"^(?:who|whom|whose|what|when|where|which|why|how|can|could|do|does|did|is|are|am|should|will|would|may|must|has|have)\b",
    re.IGNORECASE,
)
AUXILIARIES = _set(
    "am are be can cannot could did do does had has have is may might must need should was were will would"
)
_DETERMINERS = _set("a an the my your our their its his her")
SUBJECTS = _DETERMINERS | _set("i it she they this these those that to we you")
_PREPOSITIONS = _set("at by for from in of on to under with within")
_CONJUNCTIONS = _set("and but or that which who")
_NUMBER_WORDS = _set("one two three four five six seven eight nine ten first second third")
# "Per diem", "own car", "sign up".
_BEGIN_TERMS, _END_TERMS = _set("down last new off own per"), _set("down off out up use")
_MONTHS = _set("january february march april may june july august september october november december")
_DEFINITION = re.compile(
    r"^(?:(?P<article>the|an?)\s+)?(?P<term>[^\W\d_][\w&'’/ -]{1,60}?)\s+(?:is|are|means|refers to|stands for)\s+"
    r"(?P<rest>(?:an?|the|when|any|how|our|one)\b.{12,})",
    re.IGNORECASE,
)
_FUNCTION_WORDS = """
all also although and any as at because both but by each either every for from he here how however if in it once one
or otherwise she since so some that there these they this those though to unless we what when where which while who with
you
"""
_NOT_A_TERM = frozenset(_FUNCTION_WORDS.split())
_ANSWERS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), template)
    for pattern, template in (
        (r"[$€£]\s?\d|\d\s?(?:dollars|euros|USD|EUR)\b", "How much is the limit for {}?"),
        (
            r"\b(?:within|at least|up to|after|in advance|takes?)\b.{0,30}"
            r"\b(?:minutes?|hours?|days?|weeks?|months?|years?)\b",
            "What is the time limit for {}?",
        ),
        (
            r"\b(?:every (?:day|week|month|quarter|year)|deadline|due (?:by|on|date)|no later than|by the end of)\b",
            "When is {} due?",
        ),
        (
            r"\b(?:approved by|authori[sz]ed by|approval (?:from|by)|permission from|must approve|sign-off)\b",
            "Who has to approve {}?",
        ),
        (
            r"\b(?:contact|email|e-mail|reach out|ask in|talk (?:to|with)|get in touch)\b|@\w",
            "Who do I contact about {}?",
        ),
        (r"\b(?:eligible|eligibility|qualif(?:y|ies|ied)|entitled)\b", "Who is eligible for {}?"),
        (r"\b(?:responsible|in charge|accountable)\b", "Who is responsible for {}?"),
        (r"\b(?:located|available at|found (?:in|on|at)|portal|spreadsheet|folder)\b", "Where do I find {}?"),
        (
            # Not "never" and "do not", which also say what nobody needs to do.
            r"\b(?:not allowed|not permitted|prohibited|forbidden|must not)\b",
            "What is not allowed with {}?",
        ),
    )
)


@dataclass(frozen=True, slots=True)
class Form:
    """A question form and the style of the person who asks like this."""

    text: str
    style: Style


def is_question(text: str) -> bool:
    """Whether a heading or line is itself a question.

    Without a question mark it needs the order of words of one: "When do I get it", not "When you get it".
    """
    if text.rstrip().endswith("?") or not begins_like_question(text):
        return text.rstrip().endswith("?")
    found = [word.lower() for word in words(text)]
    if found[0] in AUXILIARIES:
        return True
    if found[1] in SUBJECTS:
        return False
    if found[0] not in ("how", "when", "where", "why"):
        return True
    auxiliary = next((place for place, word in enumerate(found) if word in AUXILIARIES), 0)
    # "How days are counted" tells it, "How are days counted" asks.
    return auxiliary == 1 or (auxiliary > 1 and not (auxiliary == len(found) - 2 and found[-1].endswith("ed")))


def begins_like_question(text: str) -> bool:
    """Whether a line is a question or the beginning of what answers one: "When you get it"."""
    return text.rstrip().endswith("?") or (bool(_QUESTION_START.match(text)) and len(words(text)) >= 4)


def has_question_mark(text: str) -> bool:
    """Whether a line ends as a question does in Latin, Cyrillic, Arabic or East Asian scripts.

    Not the Greek one, which is our semicolon.
    """
    return text.rstrip().endswith(("?", "？", "؟"))


def first_person(text: str) -> str:
    """The words of a handbook ("your manager") as its reader would say them ("my manager")."""

    def said(match: re.Match[str]) -> str:
        further, before = ["", "", *text[max(0, match.start() - 60) : match.start()].lower().split()][-2:]
        # "It helps and will help you find", but "the help you need".
        helped = before == "help" and further not in ("any", "more", "that", "the", "this")
        is_object = helped or before in _BEFORE_ME or _AFTER_ME.match(text, match.end())
        return "me" if match[0].lower() == "you" and is_object else _FIRST_PERSON.get(match[0].lower(), match[0])

    return _SECOND_PERSON.sub(said, text)


def without_gaps(text: str) -> str:
    """`text`, of which words were left out, without the articles and prepositions that nothing follows any more."""
    kept: list[str] = []
    following = ""
    for part in reversed(re.sub(r"(?:\s?,)+", ",", " ".join(text.split())).split()):
        word = part.lower()
        # "To be" and "to have" are whole; before "and", "is" or "I" stands no article and hardly a preposition.
        orphan = following in _CONJUNCTIONS | {"i"} | AUXILIARIES - {"be", "have"}
        if word in _DETERMINERS:
            orphan = orphan or following in _DETERMINERS or following in _PREPOSITIONS
        elif word not in _PREPOSITIONS:
            orphan = False
        # "Press and hold and" without what stood between.
        if orphan or (word.strip("()") == following and following in STOP_WORDS):
            continue
        kept.append(part)
        following = word.strip("(),;:")
    while kept and not any(map(str.isdigit, kept[0])) and all(w.lower() in STOP_WORDS for w in words(kept[0])):
        kept.pop(0)
    while kept and kept[-1].lower() in ("and", "are", "but", "is", "or", "was", "were"):
        kept.pop()
    return " ".join(reversed(kept)).rstrip(",;: ")


def starts_with_action(text: str) -> bool:
    """Whether a heading names something to do ("Create a group"), so that "How do I" can precede it."""
    found = words(text)[:3]
    # "Leave of absence", "Pay and pension" and "FILE SELECTION" name things.
    joined = found[1:2] == ["and"] and found[-1].lower() not in ACTIONS
    is_name = joined or found[1:2] == ["of"] or (bool(found) and len(found[0]) > 1 and found[0].isupper())
    return bool(found) and found[0].lower() in ACTIONS and not is_name


def heading_forms(heading: str) -> list[Form]:
    """Questions that a section with this heading answers."""
    plain = first_person(heading.strip(" .:;"))
    if is_question(plain):
        return [Form(plain if plain.endswith("?") else f"{plain}?", "question")]
    lowered = plain if any(word.istitle() for word in words(plain)[1:]) else lower_first(plain)
    if _QUESTION_START.match(plain):
        return [Form(lowered, "keywords")]
    if starts_with_action(plain):
        lowered = lower_first(plain)
        return [
            Form(f"How do I {lowered}?", "question"),
            Form(f"I need to {lowered}, where do I start?", "situation"),
            Form(f"how to {lowered}", "keywords"),
        ]
    if _is_gerund(words(plain)):
        return [
            Form(f"How does {lowered} work?", "question"),
            Form(f"I have a question about {lowered}", "situation"),
            Form(lowered, "keywords"),
        ]
    return [
        Form(f"What should I know about {lowered}?", "question"),
        Form(f"I am looking for information on {lowered}", "situation"),
        Form(lowered, "keywords"),
    ]


def _is_gerund(found: list[str]) -> bool:
    """Whether a heading names a doing: "Planning", "Booking for a team", and not the "Onboarding checklist"."""
    if not found or not found[0].lower().endswith("ing"):
        return False
    return len(found) == 1 or found[1].lower() in STOP_WORDS


def is_term(text: str) -> bool:
    """Whether "What is" can precede a text: a name of a thing, not the beginning of a sentence or an order."""
    found = [word.lower() for word in words(text)]
    if not 1 <= len(found) <= 4 or not text[:1].isalpha() or re.search(r"[,;\"“”]", text):
        return False
    if found[0] in _NUMBER_WORDS | _MONTHS or (len(found) > 1 and starts_with_action(text)):
        return False
    if found[0] in STOP_WORDS - _BEGIN_TERMS or found[-1] in STOP_WORDS - _END_TERMS:
        return False
    return STOP_WORDS.isdisjoint(set(found[1:-1]) - _PREPOSITIONS - {"and", "or"})


def defined_term(sentence: str) -> tuple[str, str] | None:
    """(term with its article, what is said about it) when a sentence defines a term: "X is a ...", "X means ..."."""
    match = _DEFINITION.match(sentence)
    if not match or not 1 <= len(words(match["term"])) <= 6:
        return None
    openings = {sentence.split()[0].strip(",").lower(), match["term"].split()[0].lower()}
    if openings & _NOT_A_TERM or _QUESTION_START.match(sentence):
        return None
    term, article = match["term"].strip(), (match["article"] or "").lower()
    # "The rule is the ...": which rule, only its page says.
    if not is_term(term) or (article == "the" and term.islower() and len(words(term)) == 1):
        return None
    return f"{article} {term}".strip(), match["rest"]


def answer_form(sentence: str, topic: str) -> Form | None:
    """A question for the kind of answer a sentence holds (an amount, a duration, a contact), about `topic`."""
    for pattern, template in _ANSWERS:
        if pattern.search(sentence):
            return Form(template.format(topic), "question")
    return None


def lower_first(text: str) -> str:
    """`text` with a small first letter, unless its first word is an acronym or the pronoun I."""
    first = text.split(" ", 1)[0]
    if first == "I" or first.startswith(("I'", "I’")) or any(letter.isupper() for letter in first[1:]):
        return text
    return text[:1].lower() + text[1:]

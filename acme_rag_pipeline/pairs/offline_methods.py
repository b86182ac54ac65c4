"""The methods of the offline generator: each reads a passage and offers queries, its best first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from acme_rag_pipeline.pairs.corpus_statistics import find_acronyms, is_stock_phrase
from acme_rag_pipeline.pairs.instruction_forms import sentence_forms
from acme_rag_pipeline.pairs.offline_source import Source, unmarked
from acme_rag_pipeline.pairs.passage import Style
from acme_rag_pipeline.pairs.plain_text import STOP_WORDS, content_words, normal_form, strip_markup
from acme_rag_pipeline.pairs.plain_text import words as plain_words
from acme_rag_pipeline.pairs.question_forms import (
    Form,
    answer_form,
    begins_like_question,
    defined_term,
    first_person,
    has_question_mark,
    heading_forms,
    is_question,
    is_term,
    lower_first,
    without_gaps,
)

_MAX_KEYWORDS = 7
_MAX_LABEL = 10
_TERM_LINE = re.compile(r"^(?P<term>[^:–—.?!]{2,60}?)\s*(?::|\s[-–—])\s+(?P<rest>.{15,})", re.DOTALL)
_SAYS_WHAT_IT_IS = re.compile(r"(?:an?|the|any|how)\b", re.IGNORECASE)
_IDENTIFIER = re.compile(
    r"(?<![\w/.])(?:"
    r"[A-Z]{1,8}-?\d{1,6}[A-Z]?(?:[-.]\d{1,6}){0,3}|[A-Z]{2,8} \d{2,6}"  # SF-50, ERR1042, OF 612
    r"|[A-Za-z]+(?:_[A-Za-z0-9]+){1,6}"  # snake_case, CONSTANT_NAME
    r"|[a-z]+(?:[A-Z][a-z0-9]+){1,6}"  # camelCase
    r"|--[a-z][a-z0-9-]{2,30}"  # command line options
    r"|[A-Za-z][\w-]{1,40}\.(?:csv|docx?|gov|html?|ini|json|md|pdf|pptx?|py|sh|toml|txt|xlsx?|xml|ya?ml)"
    r")(?![\w/])"
)
_CODE = re.compile(r"[=$\\{}+&;]|://|^--?\w|/\w+/")
_INLINE_CODE = re.compile(r"`([^`\n]{2,60})`")

# "Would you like to donate?", "You get the idea?": the reader does not ask that.
_ASKS_THE_READER = re.compile(r"(?:would you like|you|we)\b", re.IGNORECASE)

Method = Callable[[Source], Iterator[Form]]


def faq(source: Source) -> Iterator[Form]:
    """Questions the authors wrote themselves: headings and bold or short lines that end in a question mark."""
    content_words, words = source.analyzer.content_words, source.analyzer.words
    english = source.analyzer.is_english
    asked = [heading for heading in reversed(source.section_headings) if _asks(source, heading)][:1]
    if asked and _is_answered_elsewhere(source, asked[0]):
        asked = []
    page = source.specific_headings[0] if source.specific_headings else ""
    # Without a title that says something another section of the passage names its own topic.
    names_page = len(source.section_headings) < len(source.specific_headings)
    found = [(question, page) for question in asked]
    places = [(block, page if names_page else topic) for block, topic in zip(source.blocks, source.topics, strict=True)]
    for block, context in places:
        heading = unmarked(block.text)
        if block.kind == "heading" and _asks(source, heading) and not is_stock_phrase(heading):
            found.append((heading, context))
    for block, context in places:
        for text in source.sentences_of(block):
            if (text.endswith("?") if english else has_question_mark(text)) and 4 <= len(words(text)) <= 16:
                found.append((text, context))
    for question, context in found:
        if english and _ASKS_THE_READER.match(question):
            continue
        mark = "?" if is_question(question) else ""
        plain = first_person(question.rstrip("? ")) + mark if english else question
        missing = [word for word in content_words(context) if word not in content_words(question)]
        # A question like "Who should do this?" names its topic only through the page it stands on.
        vague = len(content_words(question)) < 3 and missing
        style: Style = "question" if mark or not english else "keywords"
        if vague or content_words(plain):
            yield Form(f"{_unasked(context)}: {lower_first(plain)}" if vague else plain, style)


def _unasked(heading: str) -> str:
    """A heading as the beginning of a query: without the question mark that something follows."""
    return heading.rstrip("?？؟ ").lstrip("¿ ") if has_question_mark(heading) else heading


def _asks(source: Source, heading: str) -> bool:
    return begins_like_question(heading) if source.analyzer.is_english else has_question_mark(heading)


def _is_answered_elsewhere(source: Source, heading: str) -> bool:
    """Whether a passage is so far from the heading of its long section that it hardly answers what the heading asks."""
    return source.long_section and normal_form(heading) not in source.own_headings


def heading(source: Source) -> Iterator[Form]:
    """Section heading as question (AugTriever's title -> body), sharpened where a section has many passages."""
    if not source.topic or (source.analyzer.is_english and _ASKS_THE_READER.match(source.topic)):
        return
    topic_asks = _asks(source, source.topic)
    if topic_asks and _is_answered_elsewhere(source, source.topic):
        return
    known = set(source.analyzer.content_words(source.topic))
    fresh = [phrase for phrase in source.keyphrases if not known & set(phrase.split())]
    if not source.analyzer.is_english:
        sharpen = (source.shares_section or len(known) < 2) and fresh and not topic_asks
        yield Form(f"{source.topic} {fresh[0]}" if sharpen else source.topic, "question" if topic_asks else "keywords")
        return
    sharpen = (source.shares_section or len(known) < 2) and fresh and not topic_asks
    forms = heading_forms(f"{source.topic} {fresh[0]}" if sharpen else source.topic)
    yield forms[source.draw("heading form", len(forms))]


def heading_pair(source: Source) -> Iterator[Form]:
    """Two headings of the path, or the topic with a swapped keyphrase: where in the documents a reader looks."""
    path = source.specific_headings
    if len(path) >= 2 and not (_asks(source, path[-1]) and _is_answered_elsewhere(source, path[-1])):
        outer = path[-2] if source.draw("heading pair", 2) else path[0]
        both = f"{_unasked(outer)} {path[-1]}".lower()
        # "viajes de empresa reserva de hoteles": elsewhere a second preposition cannot go.
        yield Form(_once(both) if source.analyzer.is_english else both, "keywords")
    if not path:
        return
    named = set(map(_stem, source.analyzer.content_words(path[-1])))
    for phrase in (source.swapped(phrase, "heading pair") for phrase in source.keyphrases):
        if not named & set(map(_stem, source.analyzer.content_words(phrase))):
            yield Form(f"{_unasked(path[-1])} {phrase}".lower(), "keywords")
            return


def _once(headings: str) -> str:
    """Two English headings without what they say a second time: "agreements" after "agreement" adds nothing."""
    seen: set[str] = set()
    kept: list[str] = []
    parts = headings.split()
    for part in parts:
        said = set(map(_stem, content_words(part)))
        if not said or said - seen:
            kept.append(part)
        seen |= said
    return headings if len(kept) == len(parts) else without_gaps(" ".join(kept))


def _stem(word: str) -> str:
    """A word without the ending of its plural, to tell whether two are the same thing."""
    if len(word) <= 3 or not word.endswith("s") or word.endswith("ss"):
        return word
    return f"{word[:-3]}y" if word.endswith("ies") else word[:-1]


def definition(source: Source) -> Iterator[Form]:
    """ "What is X?" for each term that the passage defines, and a reverse query that describes X without naming it.

    For labels of a list that the passage does not define the topic with X.

    In other languages than English only the reverse query, and only for terms that a colon or a dash sets off.
    """
    words, english = source.analyzer.words, source.analyzer.is_english
    found: dict[str, tuple[str, str, bool, str]] = {}
    for block, topic in zip(source.blocks, source.topics, strict=True):
        match = _TERM_LINE.match(block.text) if block.kind == "item" else None
        if match and len(words(match["term"])) <= 6 and (is_term(match["term"]) or not english):
            defines = bool(_SAYS_WHAT_IT_IS.match(match["rest"]))
            found.setdefault(normal_form(match["term"]), (match["term"], match["rest"], defines, topic))
        for sentence in source.sentences_of(block)[:60]:
            if english and (defined := defined_term(sentence)):
                found.setdefault(normal_form(defined[0]), (*defined, True, topic))
    for position, (term, rest, defines, topic) in enumerate(found.values()):
        if english and position % 2 == 0 and not defines:
            # "India: 12 public holidays": a case of the topic, not a word to be explained.
            topic = "" if begins_like_question(topic) else topic
            yield Form(_once(f"{topic} {term}".strip()), "keywords")
        elif english and position % 2 == 0:
            yield Form(f"What {'are' if term.endswith('s') and not term.isupper() else 'is'} {term}?", "question")
        else:
            described = source.without_some_words(" ".join(rest.split()[:18]), f"definition {term}")
            if source.is_telling(described):
                yield Form(described, "keywords")


def acronym(source: Source) -> Iterator[Form]:
    """Acronyms both ways: the form that the passage does not spell, with what the passage says about it."""
    content_words = source.analyzer.content_words
    present = set(source.analyzer.words(source.text))
    spelled_out = dict(find_acronyms(source.text, source.analyzer))
    lowered = f" {normal_form(source.text)} "
    for short, expansion in source.acronyms.items():
        own = {short.lower(), *content_words(expansion)}
        about = next((phrase for phrase in source.keyphrases if not own & set(phrase.split())), "")
        has_long = f" {normal_form(expansion)} " in lowered
        if short in present - source.numbered_acronyms and short not in spelled_out and not has_long:
            yield Form(f"{expansion} {about}".strip(), "keywords")
        elif has_long or short in spelled_out:
            if about:
                yield Form(f"{short} {about}", "keywords")
            elif source.analyzer.is_english:
                yield Form(f"What does {short} stand for?", "question")


def table_row(source: Source) -> Iterator[Form]:
    """One cell asked for by its row and column."""
    words = source.analyzer.words
    rows = [
        (block, _unasked(topic))
        for block, topic in zip(source.blocks, source.topics, strict=True)
        if block.kind == "row" and len(block.cells) >= 2 and words(block.cells[0])
    ]
    for index in range(min(3, len(rows))):
        row, topic = rows[(source.draw("table row", len(rows)) + index * max(1, len(rows) // 3)) % len(rows)]
        label = " ".join(row.cells[0].split()[:_MAX_LABEL]).rstrip(",;:")
        # Half a sentence, or two of them, name no row in a question.
        names = ";" not in label and len(row.cells[0].split()) <= _MAX_LABEL
        columns = [name for name in row.header[1:] if words(name)]
        if columns:
            column = columns[source.draw(f"column {index}", len(columns))]
            if not any(map(str.isalpha, label)):
                # A number names its row only together with what its table is about.
                yield Form(f"{topic} {column} {label}".strip(), "keywords")
            elif (
                source.analyzer.is_english and names and _is_noun(column) and words(label)[0].lower() not in STOP_WORDS
            ):
                yield Form(f"What is the {lower_first(column)} for {label}?", "question")
            else:
                yield Form(f"{label} {column}", "keywords")
        elif any(map(str.isalpha, label)):
            yield Form(f"{topic} {label}".strip(), "keywords")


def _is_noun(column: str) -> bool:
    """Whether "What is the" can precede a table's header, as far as its ends tell: not "For whom", "Starts", "Paid days"."""
    # "Approvers, in order" is about the approvers.
    parts = [[word.lower() for word in plain_words(part)] for part in (column, re.split("[,;]", column, maxsplit=1)[0])]
    ends = {end for found in parts if found for end in (found[0], found[-1])}
    last = [found[-1] for found in parts if found]
    verb_or_plural = any(w.endswith(("ed", "s")) and not w.endswith(("eed", "ss", "us", "is")) for w in last)
    number = not parts[0][0][0].isalpha()
    return not (ends & (STOP_WORDS | {"due"}) or verb_or_plural or number or column.endswith("?"))


def identifier(source: Source) -> Iterator[Form]:
    """Form numbers, error codes, options, file names and commands, with a word on what they are about."""
    content_words, words = source.analyzer.content_words, source.analyzer.words
    found = [match[1].strip() for match in _INLINE_CODE.finditer(source.text)]
    plain = " ".join(block.text for block in source.blocks if block.kind != "code")
    found += [match[0] for match in _IDENTIFIER.finditer(plain)]
    for name in list(dict.fromkeys(found))[:6]:
        own = set(content_words(name))
        about = next((phrase for phrase in source.keyphrases if not own & set(phrase.split())), source.topic)
        if words(name) and len(words(name)) <= 6:
            yield Form(f"{strip_markup(name)} {source.swapped(about, name)}".strip(), "keywords")


def instruction(source: Source) -> Iterator[Form]:
    """Sentences that tell a reader what to do, turned into the question of that reader."""
    scored: list[tuple[int, int, str]] = []
    for position, sentence in enumerate(source.sentences):
        scored.append((-source.importance(sentence), position, sentence))
    for _, position, sentence in sorted(scored):
        # A question with a pronoun in the place of its topic ("Can I change it?") fits every passage.
        forms = [form for form in sentence_forms(sentence) if source.importance(form.text) >= 2]
        if forms:
            yield forms[source.draw(f"instruction {position}", len(forms))]


def answer_type(source: Source) -> Iterator[Form]:
    """How much, how long, who, where: asked about the phrase that the answering sentence is about."""
    context = "" if begins_like_question(source.topic) else source.topic.lower()
    for sentence in source.sentences:
        inside = normal_form(sentence)
        topic = next((phrase for phrase in source.keyphrases if phrase in inside), "")
        shared = set(source.analyzer.content_words(context)) & set(topic.split())
        about = f"{context} {topic}".strip() if context and not shared else context or topic
        form = answer_form(sentence, about)
        # One word fits every passage: "What is not allowed with days?"
        if form and len(source.analyzer.content_words(about)) >= 2:
            yield form


def keyphrase(source: Source) -> Iterator[Form]:
    """Two or three keyphrases as a search box sees them, one of them in other words."""
    phrases = source.keyphrases
    for start in range(0, min(len(phrases), 6), 3):
        group = phrases[start : start + 3]
        place = source.draw(f"keyphrase {start}", len(group))
        group[place] = source.swapped(group[place], f"keyphrase {start}")
        if len(group) >= 2:
            different: dict[str, str] = {}
            for word in " ".join(group).split():
                different.setdefault(word.lower(), word)
            yield Form(" ".join(list(different.values())[:_MAX_KEYWORDS]), "keywords")


def sentence(source: Source) -> Iterator[Form]:
    """The most telling sentence with words dropped and swapped (inverse cloze task, without the lexical copy)."""
    scored = [
        (-source.importance(text), position, text)
        for position, text in enumerate(source.sentences)
        if 6 <= len(source.analyzer.words(text)) <= 60
    ]
    offered = 0
    for _, position, text in sorted(scored):
        # Before words are left out: whether "you" is "I" or "me" its neighbours tell.
        said = first_person(text) if source.analyzer.is_english else text
        beginning = "".join(source.analyzer.pieces(said.rstrip(".!。！"))[:28])
        kept = source.without_some_words(beginning, f"sentence {position}")
        query = source.swapped(source.analyzer.up_to_content(kept), f"sentence {position}")
        if source.is_telling(query) and not _is_code(query):
            yield Form(query, "situation")
            offered += 1
        if offered == 2:
            return


def _is_code(text: str) -> bool:
    """Whether a third of what stands between spaces is no word of prose: options, variables, addresses, signs."""
    parts = text.split()
    return 3 * sum(bool(_CODE.search(part)) or not any(map(str.isalnum, part)) for part in parts) >= len(parts)


METHODS: dict[str, Method] = {
    "faq": faq,
    "instruction": instruction,
    "heading_pair": heading_pair,
    "sentence": sentence,
    "table_row": table_row,
    "definition": definition,
    "keyphrase": keyphrase,
    "heading": heading,
    "answer_type": answer_type,
    "identifier": identifier,
    "acronym": acronym,
}
"""All methods by name, in the order in which they fill a passage's quota."""

ONLY_ENGLISH = frozenset({"instruction", "answer_type"})
"""Methods that nothing is left of without English words; the others write in any language."""

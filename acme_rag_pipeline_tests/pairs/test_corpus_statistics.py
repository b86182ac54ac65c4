from __future__ import annotations

import pytest

from acme_rag_pipeline.pairs.corpus_statistics import CorpusStatistics, acronyms_in, find_acronyms
from acme_rag_pipeline.pairs.passage import Passage
from acme_rag_pipeline.pairs.plain_text import blocks, normal_form, sentences, strip_markup, words


def passage(text: str, doc_path: str = "a.md", headings: tuple[str, ...] = ()) -> Passage:
    return Passage(chunk_id=f"{doc_path}:{len(text)}", doc_path=doc_path, title="", heading_path=headings, text=text)


def test_finds_acronyms_in_both_orders() -> None:
    text = (
        "Read the International Mobility Policy (IMP). An ATO (Authority to Operate) is needed.\n"
        "- **EAP** - Employee Assistance Program"
    )
    assert dict(find_acronyms(text)) == {
        "IMP": "International Mobility Policy",
        "ATO": "Authority to Operate",
        "EAP": "Employee Assistance Program",
    }


def test_keeps_leading_word_of_an_expansion_with_small_words() -> None:
    assert find_acronyms("ask the Office of General Counsel (OGC) first") == [("OGC", "Office of General Counsel")]


def test_parentheses_that_are_no_expansion_are_no_acronyms() -> None:
    assert find_acronyms("The budget was approved by many people (USA). Pay in dollars (USD).") == []


def test_most_frequent_expansion_wins_whatever_the_order() -> None:
    texts = [
        "Alternative Work Schedule (AWS)",
        "Amazon Web Services (AWS)",
        "we run on Amazon Web Services (AWS) today",
    ]
    forward = CorpusStatistics.from_passages([passage(text) for text in texts])
    backward = CorpusStatistics.from_passages([passage(text) for text in reversed(texts)])
    assert forward.expansions == backward.expansions == {"AWS": "Amazon Web Services"}


def test_statistics_do_not_depend_on_the_order_of_passages() -> None:
    passages = [
        passage(f"voucher reimbursement travel number{i % 3} topic{i}", f"{i % 7}.md", ("Travel", f"Part {i % 4}"))
        for i in range(40)
    ]
    forward = CorpusStatistics.from_passages(passages, with_associates=True)
    assert forward == CorpusStatistics.from_passages(passages[::-1], with_associates=True)


def test_rarity_level_grows_by_one_for_each_eightfold_frequency() -> None:
    statistics = CorpusStatistics({"rare": 3, "eight": 8, "more": 64, "common": 512}, {}, {}, {}, {})
    levels = [statistics.rarity_level(term, b"reader") for term in ("unseen", "rare", "eight", "more", "common")]
    assert levels == [0, 0, 0, 1, 2]


def test_one_more_passage_moves_a_frequent_term_for_few_readers_only() -> None:
    readers = [f"reader {number}".encode() for number in range(1000)]
    before = CorpusStatistics({"term": 511}, {}, {}, {}, {})
    after = CorpusStatistics({"term": 512}, {}, {}, {}, {})
    moved = sum(before.rarity_level("term", reader) != after.rarity_level("term", reader) for reader in readers)
    assert moved <= 15


def test_associated_terms_need_support_and_another_root() -> None:
    together = [passage(f"voucher reimbursement vouchers {i}", f"{i}.md") for i in range(7)]
    alone = [passage(f"unrelated{i} kitchen cleaning", f"k{i}.md") for i in range(7)]
    statistics = CorpusStatistics.from_passages([*together, *alone], with_associates=True)
    assert statistics.associates["voucher"] == "reimbursement"
    assert statistics.associates["kitchen"] == "cleaning"
    assert CorpusStatistics.from_passages(together[:2], with_associates=True).associates == {}


def test_generic_headings_are_stock_phrases_or_shared_by_many_documents() -> None:
    passages = [passage(f"text {i}", f"{i}.md", ("Who to ask", f"Badge colour {'abc'[i]}")) for i in range(3)]
    statistics = CorpusStatistics.from_passages(passages)
    assert statistics.is_generic_heading("1. Overview")
    assert statistics.is_generic_heading("Who to ask")
    assert not statistics.is_generic_heading("Badge colour b")


def test_empty_collection() -> None:
    statistics = CorpusStatistics.from_passages([])
    assert statistics.rarity_level("anything", b"x") == 0
    assert not statistics.shares_section(passage("x"))


def test_markup_is_stripped() -> None:
    line = (
        "See **[the `plan`](https://x.y/a_(b) \"t\")** &amp; ![img](i.png) <b>now</b> {% page '/x' %} "
        "at https://a.b/c_d #tag"
    )
    assert strip_markup(line) == "See the plan & img now at tag"
    assert strip_markup("snake_case stays, _emphasis_ goes") == "snake_case stays, emphasis goes"
    assert "<" not in strip_markup("&lt;script&gt;alert(1)&lt;/script&gt;")


def test_blocks_of_a_document() -> None:
    text = (
        "# Head\n\nOne. Two e.g. this.\n\n- item\n  goes on\n\n"
        "| Code | Fee |\n|---|---|\n| E1 | 5 |\n\n```\ncode | x\n```\n"
    )
    found = blocks(text)
    assert [block.kind for block in found] == ["heading", "prose", "item", "row", "code"]
    assert sentences(found[1]) == ["One.", "Two e.g. this."]
    assert found[2].text == "item goes on"
    assert (found[3].header, found[3].cells) == (("Code", "Fee"), ("E1", "5"))


def test_words_of_other_scripts() -> None:
    assert words("Über-größe naïve Привет") == ["Über-größe", "naïve", "Привет"]
    assert words("休暇申請") == ["休暇", "申請"]
    assert normal_form("  Hello, WORLD! ") == "hello world"
    assert acronyms_in("The TTS and the IT of TTS, not Word") == ["TTS", "IT"]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        # The rest of a block of code that is longer than a passage, and the prose behind it.
        ("retries = 4\ntimeout = 30\n```\n\nAfter the restart the coordinator accepts requests.", ["code", "prose"]),
        ("retries = 4\n```\nAfter it.\n```yaml\na: 1\n```", ["code", "prose", "code"]),
        ("retry(4)\n\nfor job in jobs:\n    job.run(now)\n    job.wait(2)", ["code"]),
        ("Ask first.\n\n```\nretries = 4", ["prose", "code"]),
        ("Ask first.\n\n```\nretries = 4\n```\n\nThen wait.", ["prose", "code", "prose"]),
        # Nothing of this is code.
        (
            "The request must state:\n- the name of the employee;\n- the start date;\n- the reason.",
            ["prose", *["item"] * 3],
        ),
        ("## Notice\n- the name;\n- the date;\n- the reason.", ["heading", *["item"] * 3]),
        ('(a) the name;\n\n(b) the date;\n\n(c) C:\\\\forms, or\n\n"by hand".', ["prose"] * 4),
        ("<tr>\n<td>User research</td>\n<td>Ask Kim</td>\n</tr>", ["prose"]),
        (
            '1. Go to your [settings]({% link "https://a.example" %}).\n2. Ask.\n\n{% alert %}\nWait.',
            ["item", "item", "prose"],
        ),
    ],
)
def test_a_passage_may_begin_within_code(text: str, kinds: list[str]) -> None:
    assert [block.kind for block in blocks(text)] == kinds

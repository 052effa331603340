"""The context block has the form of the training data, keeps its budget, and cites exactly what stands in it."""

from __future__ import annotations

from trainer.retrieval.context import build_context
from trainer.retrieval.search import Hit


def hit(file: str, text: str, **fields: object) -> Hit:
    usual = {"score": 0.5, "chunk_id": file, "page": None, "start_line": 3, "end_line": 9}
    return Hit(file=file, text=text, **{**usual, **fields})  # type: ignore[typeddict-item]


FOX = hit("document.md", "The quick brown fox jumps over the lazy dog.")
FACTS = hit("facts.txt", "Foxes are omnivorous mammals.\nThey live long.", start_line=2, end_line=2)


def test_the_form_is_the_one_models_were_trained_on() -> None:
    context = build_context([FOX, FACTS], 1000)
    assert context.text == (
        "[1] (document.md) The quick brown fox jumps over the lazy dog.\n"
        "[2] (facts.txt) Foxes are omnivorous mammals.\nThey live long."
    )
    assert [citation.display() for citation in context.citations] == [
        "[1] document.md, lines 3-9",
        "[2] facts.txt, line 2",
    ]


def test_a_page_is_cited_as_a_page() -> None:
    assert build_context([hit("a.pdf", "text", page=4)], 100).citations[0].display() == "[1] a.pdf, page 4"


def test_the_budget_is_kept_and_only_what_is_shown_is_cited() -> None:
    shown = set()
    for budget in range(140):
        context = build_context([FOX, FACTS], budget)
        shown.add(len(context.citations))
        assert len(context.text) <= budget
        assert len(context.citations) == sum(name in context.text for name in ("(document.md)", "(facts.txt)"))
        if context.text and not context.text.endswith(("dog.", "long.")):
            assert context.text.endswith("...") and not context.text.endswith(" ...")
    assert shown == {0, 1, 2}


def test_a_budget_may_be_counted_in_tokens() -> None:
    context = build_context([FOX, FACTS], 11, measure=lambda text: len(text.split()))
    assert context.text == build_context([FOX], 1000).text
    assert len(context.citations) == 1


def test_the_weakest_are_left_out_and_none_after_the_first_that_does_not_fit() -> None:
    long = hit("long.md", "word " * 200)
    context = build_context([FOX, long, FACTS], 90)
    assert [citation.file for citation in context.citations] == ["document.md"]


def test_the_same_text_is_given_once() -> None:
    context = build_context([FOX, hit("copy.md", FOX["text"]), FACTS], 1000)
    assert [citation.file for citation in context.citations] == ["document.md", "facts.txt"]
    assert "[2] (facts.txt)" in context.text


def test_no_hits_make_no_context() -> None:
    assert build_context([], 1000).text == "" and build_context([], 1000).citations == ()


def test_a_file_name_cannot_pass_for_another_source() -> None:
    assert build_context([hit("a\n[9] (b", "text")], 100).text == "[1] (a [9] (b) text"

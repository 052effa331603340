"""One row of a public data set, and what pairs it gives; shares of a budget; HTML as text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hub_folders import stack_exchange_row

from guard.errors import UsageError
from trainer.pairs.html_text import html_to_text
from trainer.pairs.pair import id_of_line, pair_id, pair_line
from trainer.pairs.shares import fair_shares, parse_count
from trainer.pairs.sources import PAIRS_PER_QUESTION, SOURCES, find_sources

HH, ULTRA, STACK = SOURCES.values()


def test_a_transcript_is_split_at_its_last_answer_and_ends_with_the_user() -> None:
    before = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"
    found = HH.pairs_of({"chosen": before + " Because\n\nof it.", "rejected": before + " No."})
    turns = [("user", "Hi"), ("assistant", "Hello."), ("user", "Why?")]
    assert found == [{"prefix": {"messages": [{"role": role, "content": text} for role, text in turns]},
                      "chosen": "Because\n\nof it.", "rejected": "No."}]  # fmt: skip


@pytest.mark.parametrize(
    ("chosen", "rejected", "words"),
    [
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: b", "Responses are identical"),
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant:", "is empty after stripping"),
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: other\n\nAssistant: c", "differ"),
        ("\n\nHuman: a\n\nAssistant: b", None, "Missing required field 'rejected'"),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "\n\nHuman: a\n\nHuman: b\n\nAssistant: d", "in a row"),
        ("a chat", "another", "Human"),
    ],
)
def test_a_row_that_is_no_pair_says_why(chosen: Any, rejected: Any, words: str) -> None:
    found = HH.pairs_of({"chosen": chosen, "rejected": rejected})
    assert isinstance(found, str) and words in found


def test_turns_on_both_sides_give_the_common_beginning_as_prefix() -> None:
    def side(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]

    row = {"chosen": side("x"), "rejected": side("y"), "score_chosen": 5.0, "score_rejected": 5.0}
    assert ULTRA.pairs_of(row) == [{"prefix": {"messages": [{"role": "user", "content": "q"}]}, "chosen": "x", "rejected": "y"}]
    assert ULTRA.pairs_of(row | {"score_rejected": 6.0}) == "score_chosen is below score_rejected"


def test_the_best_answer_is_set_against_lower_ones_and_never_against_an_equal_one() -> None:
    found = STACK.pairs_of(stack_exchange_row(7, [2, 5, 5, -1, 0, 3], selected=2))
    assert isinstance(found, list) and len(found) == PAIRS_PER_QUESTION
    assert {pair["chosen"] for pair in found} == {"Answer 7.2"}
    assert [pair["rejected"] for pair in found] == ["Answer 7.3", "Answer 7.4", "Answer 7.0"]
    assert found[0]["prefix"]["messages"][-1] == {"role": "user", "content": "How does 7 work?"}
    assert STACK.pairs_of(stack_exchange_row(7, [3, 3])) == "no two answers with different scores"


def test_code_in_html_keeps_every_space_and_prose_loses_its_tags() -> None:
    html = ("<p>Use   <code>a &lt; b</code>,\nnot <a href='x'>this</a>:</p><pre><code>if a:\n    b()\n\n\n  c\n</code></pre>"
            "<ul><li>one</li><li>two<ol><li>deep</li></ol></li></ul><script>bad()</script><p>x<br>y</p>")  # fmt: skip
    assert html_to_text(html) == (
        "Use `a < b`, not this:\n\n```\nif a:\n    b()\n\n\n  c\n```\n\n- one\n- two\n  1. deep\n\nx\ny"
    )
    assert html_to_text("1 < 2 & 3 > 2") == "1 < 2 & 3 > 2"
    assert html_to_text("<div>" * 5_000 + "deep") == "deep"


def test_the_same_pair_has_the_same_id_however_it_is_spaced() -> None:
    fields = {"prefix": {"messages": [{"role": "user", "content": "é?"}]}, "chosen": "a", "rejected": "b"}
    other = {"prefix": {"messages": [{"role": "user", "content": "e\u0301? "}]}, "chosen": "a\r\n", "rejected": "b"}
    assert pair_id(fields) == pair_id(other) != pair_id(fields | {"chosen": "A"})
    line = pair_line(fields, "hh-rlhf")
    assert id_of_line(line) == json.loads(line)["id"] == pair_id(fields)
    assert list(json.loads(line)) == ["id", "prefix", "chosen", "rejected", "src"]


@pytest.mark.parametrize(
    ("budget", "limits", "shares"),
    [
        (10, {"a": 99, "b": 99, "c": 99}, {"a": 4, "b": 3, "c": 3}),
        (100, {"a": 10, "b": 500, "c": 45}, {"a": 10, "b": 45, "c": 45}),
        (100, {"a": 10, "b": 20}, {"a": 10, "b": 20}),
        (100, {"a": 0, "b": 500}, {"a": 0, "b": 100}),
    ],
)
def test_a_short_source_gives_its_rest_to_the_others(budget: int, limits: dict[str, int], shares: dict[str, int]) -> None:
    assert fair_shares(budget, limits) == shares


def test_a_budget_is_written_as_people_write_it() -> None:
    assert [parse_count(text, "--budget") for text in ("200k", "1.5M", "50,000")] == [200_000, 1_500_000, 50_000]
    for text in ("0", "-3", "many", "1e6"):
        with pytest.raises(UsageError):
            parse_count(text, "--budget")


def test_sources_are_found_by_name_and_stand_in_one_order() -> None:
    assert find_sources(["stack-exchange-preferences,hh-rlhf"]) == [HH, STACK] and find_sources([]) == [HH, ULTRA, STACK]
    with pytest.raises(UsageError, match="oasst"):
        find_sources(["oasst"])

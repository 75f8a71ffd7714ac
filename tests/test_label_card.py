import json
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pandas as pd
import pytest

from features.labels import Label, LabelSettings
from models.label_card import LabelCard, define, make_card, wilson

FIRST = datetime(2024, 3, 1, tzinfo=UTC)
KNOWN_AT = datetime(2024, 6, 1, tzinfo=UTC)
STALE = "they were made at another time or under other settings, so take the snapshots again"


def label_of(name: str = "churn", **settings: Any) -> Label:
    return LabelSettings.model_validate({name: settings}).named[name]


def card(*counts: dict[str, int], label: Label | None = None, test: int = 0, jump_max: float = 0.75) -> LabelCard:
    """Make a card of what was counted at weekly snapshots, the last of which are to test on."""
    instants = [FIRST + timedelta(days=7 * number) for number in range(len(counts))]
    nothing = dict.fromkeys(("users", "incomplete", "ineligible", "labelled", "positive", "contradicted"), 0)
    rows = [
        nothing | {"as_of": pd.Timestamp(instant), "users": count.get("labelled", 0)} | count
        for instant, count in zip(instants, counts, strict=True)
    ]
    parts = dict.fromkeys(instants, "train") | dict.fromkeys(instants[len(counts) - test :], "test")
    return make_card(label or label_of(), pd.DataFrame(rows), 70, KNOWN_AT, parts, jump_max)


GOOD = {"labelled": 100, "positive": 20}


# --- the definition in words ---


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (
            label_of(),
            "churned: no event of any kind in the 28 days from as_of; asked of those who came in the 28 days before",
        ),
        (label_of("conversion"), "converted: at least one purchase in the 7 days from as_of; asked of everyone"),
        (
            label_of("conversion", events=["trial", "sign_up"], horizon_days=1, delay_days=2.5),
            "converted: at least one trial or sign_up in the 1 day from 2.5 days after as_of; asked of everyone",
        ),
        (
            label_of(
                "no_purchase_90d",
                kind="churn",
                horizon_days=90,
                events=["purchase"],
                eligible_days=90,
                eligible_by="purchase_recency_days",
            ),
            "no_purchase_90d: no purchase in the 90 days from as_of; asked of those who bought in the 90 days before",
        ),
        (
            label_of("conversion", eligible_by="purchase_recency_days"),
            "converted: at least one purchase in the 7 days from as_of; asked of those who ever bought",
        ),
    ],
)
def test_a_definition_is_in_words(label: Label, words: str) -> None:
    assert define(label) == words


# --- base rates ---


def test_a_base_rate_has_its_wilson_interval() -> None:
    # Newcombe (1998), table I: 81 of 263
    found = wilson(81, 263)
    assert (found.share, found.low, found.high) == pytest.approx((0.3080, 0.2553, 0.3662), abs=5e-5)


def test_a_base_rate_is_of_the_rows_that_have_the_label() -> None:
    [first, second] = card(GOOD | {"users": 150, "ineligible": 50}, {"users": 30, "ineligible": 30}).snapshots

    assert first.base_rate == wilson(20, 100)
    assert second.base_rate is None


def test_rows_left_out_are_counted_by_reason() -> None:
    made = card(GOOD | {"users": 150, "ineligible": 50}, {"users": 30, "incomplete": 30})

    assert [(one.reason, one.rows) for one in made.excluded] == [
        *(("window incomplete", 30), ("not eligible", 50), ("robot", 0), ("no consent", 0)),
    ]
    assert made.excluded[1].why == "not those who came in the 28 days before"
    assert made.excluded[3].why == "the events do not tell, so nobody is left out for it"
    assert (made.row_count, made.user_count) == (100, 70)


# --- rules ---


def test_a_label_that_keeps_every_rule_is_not_broken() -> None:
    made = card(GOOD, GOOD)

    assert made.broken is None
    assert [rule.held for rule in made.rules] == [True] * 4


def test_a_label_that_the_events_contradict_is_broken() -> None:
    assert card(GOOD, GOOD | {"contradicted": 3}).broken == f"3 of 200 labels say otherwise than the events: {STALE}"


def test_a_user_who_lacks_a_label_without_a_reason_breaks_it() -> None:
    assert card(GOOD, GOOD | {"users": 110}).broken == f"10 of 210 rows do not add up: {STALE}"


def test_rows_too_many_do_not_make_up_for_rows_that_lack() -> None:
    assert str(card(GOOD | {"users": 90}, GOOD | {"users": 110}).broken).startswith("20 of 200 rows do not add up")


@pytest.mark.parametrize(("positive", "percent"), [(0, "0.0 %"), (100, "100.0 %")])
def test_a_label_with_one_answer_only_is_broken(positive: int, percent: str) -> None:
    one = {"labelled": 100, "positive": positive}

    assert card(one).broken == f"the label is true of {positive} of 100 rows to learn from: {percent}"


def test_both_answers_have_to_be_among_the_rows_to_learn_from() -> None:
    none = {"labelled": 100, "positive": 0}

    assert card(none, GOOD, test=1).broken == "the label is true of 0 of 100 rows to learn from: 0.0 %"
    assert card(GOOD, none, test=1).broken is None


def test_a_label_that_no_row_has_is_broken() -> None:
    assert card({"users": 40, "ineligible": 40}).broken == "none of 40 rows to learn from has the label"


def test_a_jump_from_one_snapshot_to_the_next_breaks_a_label() -> None:
    assert card(GOOD, {"labelled": 100, "positive": 96}).broken == (
        "the base rate goes from 20.0 % at 2024-03-01 to 96.0 % at 2024-03-08, by 76.0 points, "
        "more than labels.base_rate_jump_max = 0.75 allows"
    )


def test_a_fall_is_a_jump_too() -> None:
    assert "from 96.0 % at 2024-03-01 to 20.0 %" in str(card({"labelled": 100, "positive": 96}, GOOD).broken)


def test_a_difference_of_just_the_limit_is_no_jump() -> None:
    assert card(GOOD, {"labelled": 100, "positive": 70}, jump_max=0.5).broken is None
    assert card(GOOD, {"labelled": 100, "positive": 71}, jump_max=0.5).broken is not None


def test_few_rows_whose_intervals_overlap_do_not_jump() -> None:
    assert card({"labelled": 2, "positive": 0}, {"labelled": 2, "positive": 2}, jump_max=0.1).broken is None


def test_neighbours_with_a_snapshot_between_them_are_not_compared() -> None:
    nobody = {"users": 100, "ineligible": 100}

    assert card(GOOD, nobody, {"labelled": 100, "positive": 100}).broken is None


def test_every_rule_that_is_broken_is_said() -> None:
    broken = str(card({"labelled": 100, "positive": 0, "contradicted": 90}).broken)

    assert broken.split("; ") == [
        f"90 of 100 labels say otherwise than the events: {STALE}",
        "the label is true of 0 of 100 rows to learn from: 0.0 %",
    ]


# --- what is stored ---


class Page(HTMLParser):
    """Collect the tags that are open, and what a page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing() -> None:
    text = card(GOOD, GOOD, test=1).to_html()
    page = Page(text)

    assert page.open == []
    assert page.loads == []
    assert not re.search(r"https?:|@import|url\(", text)


def test_the_page_shows_each_snapshot_and_each_rule() -> None:
    made = card(GOOD, {"labelled": 1000, "positive": 970}, test=1)
    text = made.to_html()

    assert text.count("<circle") == 2
    assert text.count('class="mark open"') == 1
    assert "<td>97.0 %</td>" in text
    assert "95.7 % to 97.9 %" in text
    assert all(rule.found in text for rule in made.rules)
    assert f"Not to be trusted: {made.broken}" in text


def test_names_are_text_in_the_page() -> None:
    text = card(GOOD, label=label_of("conversion", events=["<b>&"])).to_html()

    assert "at least one &lt;b&gt;&amp; in" in text
    assert "<b>" not in text


def test_a_page_without_any_label_says_so() -> None:
    assert "No snapshot has the label." in card({"users": 40, "ineligible": 40}).to_html()


def test_json_holds_all_that_the_page_shows() -> None:
    made = card(GOOD | {"users": 150, "ineligible": 50}, {"users": 30, "incomplete": 30}, test=1)

    stored = json.loads(json.dumps(made.to_dict(), allow_nan=False))

    assert stored["definition"] == made.definition
    assert stored["settings"]["horizon_days"] == 28
    assert (stored["rows"], stored["users"], stored["known_at"]) == (100, 70, "2024-06-01T00:00:00+00:00")
    assert [one["part"] for one in stored["snapshots"]] == ["train", "test"]
    assert stored["snapshots"][0]["base_rate"]["share"] == 0.2
    assert stored["snapshots"][1]["base_rate"] is None
    assert [one["rows"] for one in stored["excluded"]] == [30, 50, 0, 0]
    assert [one["held"] for one in stored["rules"]] == [True] * 4
    assert stored["broken"] is None

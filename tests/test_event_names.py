import tomllib

import pytest
from histories import events_of
from ibis.backends.duckdb import Backend as DuckDB

from features.event_names import (
    NAMES_KEPT,
    NAMES_SHOWN,
    STANDARD,
    EventName,
    EventNames,
    count_names,
    hints,
    list_names,
)


def counted(engine: DuckDB, *names: str, mapping: dict[str, str] | None = None) -> EventNames:
    """Count events of these names, one each."""
    return count_names(
        events_of(engine, [{"event_name": name, "occurred_at": "2024-03-01"} for name in names]), mapping or {}
    )


def likely(engine: DuckDB, name: str) -> str | None:
    [found] = counted(engine, name).names
    return found.likely


def test_names_are_counted_the_most_frequent_first(engine: DuckDB) -> None:
    found = counted(engine, "search", "quiz", "quiz", "forum", mapping={"forumng": "forum"})

    assert found == EventNames(
        [
            EventName("quiz", 2, standard=False, mapped=False, likely=None),
            EventName("forum", 1, standard=False, mapped=True, likely=None),
            EventName("search", 1, standard=True, mapped=False, likely=None),
        ],
        more=0,
    )


def test_without_events_there_are_no_names(engine: DuckDB) -> None:
    events = events_of(engine, [{"event_name": "search", "occurred_at": "2024-03-01"}])

    assert count_names(events.filter(events.event_name == "none"), {}) == EventNames()


# --- names that are like a standard one ---


@pytest.mark.parametrize("name", STANDARD)
def test_a_standard_name_is_like_no_other(engine: DuckDB, name: str) -> None:
    assert likely(engine, name) is None


@pytest.mark.parametrize(
    ("name", "standard"),
    [
        ("Purchase", "purchase"),
        ("PURCHASE ", "purchase"),
        ("\tpurchase", "purchase"),
        ("Page View", "page_view"),
        ("pageView", "page_view"),
        ("$pageview", "page_view"),
        ("add-to-cart", "add_to_cart"),
        ("AddToCart", "add_to_cart"),
        ("Order Completed", "purchase"),
        ("order_completed", "purchase"),
        ("Completed Order", "purchase"),
        ("Placed Order", "purchase"),
        ("Order Refunded", "refund"),
        ("Product Viewed", "product_view"),
        ("Product Added", "add_to_cart"),
        ("Product Removed", "remove_from_cart"),
        ("Products Searched", "search"),
        ("Checkout Started", "checkout_start"),
        ("Help Center Viewed", "support_view"),
        ("view_item", "product_view"),
        ("begin_checkout", "checkout_start"),
        ("view_search_results", "search"),
        ("Signed Up", "sign_up"),
        ("Logged In", "login"),
        ("Button Clicked", "click"),
    ],
)
def test_case_blanks_and_wording_of_other_tools_are_known(engine: DuckDB, name: str, standard: str) -> None:
    assert likely(engine, name) == standard


@pytest.mark.parametrize(
    "name", ["view_cart", "session_start", "purchases_page", "repurchase", "購入 purchase", "!?", ""]
)
def test_another_word_is_like_none(engine: DuckDB, name: str) -> None:
    assert likely(engine, name) is None


def test_a_name_that_is_mapped_to_itself_is_meant_so(engine: DuckDB) -> None:
    [found] = counted(engine, "Purchase", mapping={"Purchase": "Purchase"}).names

    assert (found.mapped, found.likely) == (True, None)


def test_a_name_may_be_like_one_that_is_mapped(engine: DuckDB) -> None:
    mapping = {"Kauf_Getätigt": "purchase", "forumng": "forum", "order completed": "Order Completed"}
    found = counted(engine, "KAUF GETÄTIGT ", "forum-ng", "Order Completed", mapping=mapping)

    assert {one.name: one.likely for one in found.names} == {
        "KAUF GETÄTIGT ": "purchase",
        "forum-ng": "forum",
        "Order Completed": "purchase",  # what the mapping gives is no standard name
    }


# --- hints ---


def test_a_hint_has_the_count_and_the_line_to_write(engine: DuckDB) -> None:
    assert hints(counted(engine, "Order Completed", "Order Completed", "quiz", "purchase"), {}) == [
        "2 events are named 'Order Completed', which counts as no purchase; if it is one, write "
        '"Order Completed" = "purchase" under [events.names]'
    ]


def test_a_hint_on_a_name_that_a_mapping_gave_names_the_sources_names(engine: DuckDB) -> None:
    mapping = {"oc": "Purchase", "bought": "Purchase"}
    [hint] = hints(counted(engine, "Purchase", mapping=mapping), mapping)

    assert 'write "oc" = "purchase", "bought" = "purchase" under' in hint


@pytest.mark.parametrize(
    "name", ['"purchase"', "purchase\\", "\x1b[purchase\n", "purchase\u2028\x7f", "purchase \U0001f4b8"]
)
def test_the_line_to_write_is_toml_and_harmless_whatever_the_name(engine: DuckDB, name: str) -> None:
    [hint] = hints(counted(engine, name), {})

    line = hint.split("write ")[1].removesuffix(" under [events.names]")
    assert tomllib.loads(line) == {name: "purchase"}
    assert hint.isprintable()


def test_a_name_too_long_to_write_gives_no_hint_and_is_listed(engine: DuckDB) -> None:
    found = counted(engine, "purchase" + " " * 1000)

    assert hints(found, {}) == []
    assert list_names(found) == [f"without a standard name: 'purchase{' ' * 52}...' 1"]


def test_of_many_alike_names_twenty_have_a_hint_and_the_others_are_counted(engine: DuckDB) -> None:
    found = counted(engine, *("purchase" + "!" * number for number in range(1, NAMES_SHOWN + 6)))

    assert len(hints(found, {})) == NAMES_SHOWN + 1
    assert hints(found, {})[-1] == "5 more names are like these"


# --- lists ---


def test_standard_and_mapped_names_come_first_then_all_others_then_none_twice(engine: DuckDB) -> None:
    found = counted(engine, "search", "search", "forum", "quiz", "Purchase", mapping={"f": "forum"})

    assert list_names(found) == ["events: search 2, 'forum' 1", "without a standard name: 'quiz' 1"]


def test_of_many_names_the_most_frequent_are_listed_and_the_others_counted(engine: DuckDB) -> None:
    names = [f"name {number:03}" for number in range(NAMES_KEPT + 50)]
    found = counted(engine, *names, "name 149", "purchase", "Purchase")

    assert (len(found.names), found.more) == (NAMES_KEPT, 52)
    [line] = [line for line in list_names(found) if line.startswith("without")]
    assert line.startswith("without a standard name: 'name 149' 2, 'name 000' 1, ")
    assert line.count("'name") == NAMES_SHOWN
    assert line.endswith(f", and {150 - NAMES_SHOWN:,} more")


def test_a_rare_name_that_is_like_a_standard_one_is_never_left_out(engine: DuckDB) -> None:
    frequent = [f"name {number}" for number in range(NAMES_KEPT)] * 2

    assert len(hints(counted(engine, *frequent, "Purchase"), {})) == 1


def test_a_long_name_is_cut(engine: DuckDB) -> None:
    found = counted(engine, "x" * 1_000_000)

    assert found.names[0].name == "x" * 200 + "..."
    assert list_names(found) == [f"without a standard name: '{'x' * 60}...' 1"]


def test_signs_that_would_change_a_terminal_are_escaped(engine: DuckDB) -> None:
    assert list_names(counted(engine, "a\x1b[2Jb")) == ["without a standard name: 'a\\x1b[2Jb' 1"]

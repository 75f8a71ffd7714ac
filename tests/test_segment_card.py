from datetime import UTC, datetime
from typing import Any

from sklearn.pipeline import Pipeline

from models.descriptions import Trait
from models.segment_card import to_html
from models.segment_rules import SegmentRule
from models.segments import Segment, SegmentModel

BUYERS = Segment(
    "S02",
    "Frequent buyers",
    300,
    0.3,
    0.91,
    (Trait("purchase_count", 1.4, "median", 6.0, 2.0), Trait("bounce_rate", -0.6, "mean", 0.1, 0.3)),
    "6 purchases (all users: 2)",
    SegmentRule("purchase_count >= 4 and bounce_rate <= 0.5", 0.9, 0.8, 0.27, 1000),
)
OTHERS = Segment("S01", "Typical visitors", 700, 0.7, 0.5, (), "Much like all users", flags=("nothing distinctive",))
AS_OF = datetime(2024, 6, 30, tzinfo=UTC)


TELLS = {
    "learnt_as_of": "2024-05-05T00:00:00+00:00",
    "as_of": "2024-06-02T00:00:00+00:00",
    "users": 1000,
    "segments": 2,
    "outcomes": {
        "revenue": {
            "horizon_days": 28.0,
            "mean": 4.0,
            "metrics": {
                way: {"r2": {"value": value, "low": 0.1, "high": 0.3}}
                for way, value in {"segments": 0.24, "rfm_kmeans": 0.21, "rfm_terciles": 0.2, "spending": -0.01}.items()
            },
            "gains": {
                rival: {"r2": {"value": 0.03, "low": -0.01, "high": 0.05}}
                for rival in ("rfm_kmeans", "rfm_terciles", "spending")
            },
        }
    },
}


def page(*segments: Segment, tells: dict[str, Any] | None = None) -> str:
    model = SegmentModel(Pipeline([("nothing", "passthrough")]), segments, 3, tells=tells)
    return to_html(model, "shop", AS_OF, "Europe/Berlin")


def test_what_segments_say_about_the_future_stands_beside_what_simpler_ones_say() -> None:
    text = page(BUYERS, OTHERS, tells=TELLS)

    assert "What these segments say about the next 28 days" in text
    assert "They explain 24 % of the differences in revenue over the next 28 days" in text
    assert "<td>0.240</td><td>0.210</td><td>0.200</td><td>−0.010</td><td>+0.030 (−0.010 to +0.050)</td>" in text


def test_where_no_outcomes_were_complete_the_page_says_so() -> None:
    assert "What they say about the future is not known: " in page(BUYERS, OTHERS)


def test_the_segments_are_there_from_the_largest_to_the_smallest() -> None:
    text = page(BUYERS, OTHERS)

    assert "2 segments of 1,000 users, as of 2024-06-30 02:00 Europe/Berlin" in text
    assert text.index('<h2 id="S01">') < text.index('<h2 id="S02">')


def test_traits_stand_beside_all_users_with_their_difference() -> None:
    text = page(BUYERS)

    assert "<tr><td>purchases</td><td>6</td><td>2</td><td>+1.4</td></tr>" in text
    assert "<td>10 %</td><td>30 %</td><td>\N{MINUS SIGN}0.6</td>" in text


def test_a_rule_says_what_it_is_worth() -> None:
    text = page(BUYERS)

    assert "<code>purchase_count &gt;= 4 and bounce_rate &lt;= 0.5</code>" in text
    assert "holds for 27 % of all users" in text
    assert "90 % are of the segment (precision), and it finds 80 % of the segment (recall)" in text


def test_a_flag_is_shown_and_a_missing_rule_is_not() -> None:
    text = page(OTHERS)

    assert "Nothing distinctive." in text
    assert "<code>" not in text


def test_a_hostile_value_is_only_text() -> None:
    hostile = "<script>alert(1)</script>"
    segment = Segment("S01", hostile, 1, 1.0, 1.0, (Trait("plan", 1.0, "share", 1.0, 0.5, hostile),), hostile)

    assert "<script>" not in page(segment)
    assert "&lt;script&gt;" in page(segment)

from datetime import UTC, datetime

import reports

from publish.user_page import render_user

SESSION = {
    **{"started_at": datetime(2024, 6, 28, 22, 5, tzinfo=UTC), "duration_s": 90.0, "event_count": 3, "source": None},
    **{"device": None, "country": None, "entry_page": "home", "exit_page": "home", "purchase_count": 0},
    **{"cart_abandoned": None, "bounced": False, "support_count": 0, "converted": False},
}


def test_times_are_those_of_the_business_s_clocks() -> None:
    report = reports.example()
    [user] = reports.listed(report).slice(0, 1).to_pylist()
    page = render_user("nonce", report, user | {"last_seen_at": SESSION["started_at"]}, [SESSION])

    assert "as of 2024-06-29 02:00 Europe/Berlin" in page
    assert "<dt>Last seen</dt><dd>2024-06-29 00:05 Europe/Berlin</dd>" in page
    assert "Began (Europe/Berlin)" in page
    assert "<td>2024-06-29 00:05</td>" in page


def test_a_session_of_a_source_that_has_days_is_not_said_to_have_bounced() -> None:
    report = reports.example()
    [user] = reports.listed(report).slice(0, 1).to_pylist()
    no_lengths = [one for one in report.overview.metrics if one.name != "bounce_rate"]
    of_days = report.model_copy(update={"overview": report.overview.model_copy(update={"metrics": no_lengths})})
    by_time, by_day = (
        render_user("nonce", one, user | {"last_seen_at": SESSION["started_at"]}, [SESSION | {"bounced": True}])
        for one in (report, of_days)
    )

    assert "<td>bounced</td>" in by_time
    assert "<td>bounced</td>" not in by_day

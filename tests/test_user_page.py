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

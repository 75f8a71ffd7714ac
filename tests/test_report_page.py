import base64
import csv
import hashlib
import io
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import reports
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Dialog, Page, Request

from publish.formulas import escape
from publish.report import charts
from publish.report.content import Estimate, Foretold, Report, Tells
from publish.report.page import PAGE_BYTES, day, policy, to_html
from publish.report.user_list import pack

HOSTILE = (
    "<script>alert(1)</script>", "</script><script>alert(2)</script>", 'quote " and \' quote', "comma, semicolon;",
    "line\nbreak", "carriage\r\nreturn", " space ", "", "=1+1", "a/b?c=d#e&f", "😀 emoji", "x" * 10_000, "{{ 7 * 7 }}",
    "null", "<!--", "\u2028", "tab\there", '"',
)  # fmt: skip
PHONE = {"width": 375, "height": 700}


@pytest.fixture(scope="module")
def report() -> Report:
    return reports.large(2_000, segment_count=3)


@pytest.fixture(scope="module")
def users(report: Report) -> pa.Table:
    return reports.listed(report)


@pytest.fixture(scope="module")
def html(report: Report, users: pa.Table) -> str:
    return to_html(report, users, reports.Settings(personal=["region"]))


def test_the_same_report_gives_the_same_bytes(html: str, report: Report, users: pa.Table) -> None:
    assert to_html(report, users, reports.Settings(personal=["region"])) == html


def test_instants_and_days_are_those_of_the_business_s_clocks(report: Report) -> None:
    evening = report.model_copy(update={"as_of": datetime(2024, 6, 29, 22, tzinfo=UTC)})

    assert "as of 2024-06-30 00:00 Europe/Berlin" in to_html(evening, None, reports.Settings())
    assert (day("Europe/Berlin", evening.as_of), day("UTC", evening.as_of)) == ("2024-06-30", "2024-06-29")


def test_nothing_is_loaded_from_elsewhere(html: str) -> None:
    assert not re.findall(r"(?:src|href|url|data)\s*[=(]\s*[\"']?(?!#|data:,)[^\"'\s>]*//", html)
    assert "http:" not in html
    assert "https:" not in html


def test_the_policy_allows_its_own_script_and_style_by_hash_and_nothing_else(html: str) -> None:
    told = policy(html)

    assert f'content="{told}"'.replace("'", "&#39;") in html
    assert told.startswith("default-src 'none'; ")
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in told


def test_no_element_has_a_style_or_a_handler_of_its_own(html: str) -> None:
    assert not re.findall(r"<[a-z][^>]*\s(?:style|on[a-z]+)=", html)


def test_with_a_nonce_the_server_says_what_may_run() -> None:
    html = to_html(reports.example(), None, reports.Settings(), nonce="abc")

    assert '<script nonce="abc">' in html
    assert '<style nonce="abc">' in html
    assert "Content-Security-Policy" not in html


def test_hostile_texts_are_only_text() -> None:
    report = reports.example()
    hostile = "</title></script><script>alert(1)</script>"
    segment = report.segments[0].model_copy(
        update={
            "segment_id": hostile,
            "name": hostile,
            "description": hostile,
            "top_users": [report.segments[0].top_users[0].model_copy(update={"user_id": name}) for name in HOSTILE],
        }
    )
    html = to_html(report.model_copy(update={"source": hostile, "segments": [segment]}), None, reports.Settings())

    assert html.count("<script") == 1
    assert "alert(1)" in html
    assert len(set(re.findall(r'id="([^"]*)"', html))) == html.count(' id="')


def test_what_is_suppressed_or_does_not_apply_is_not_a_number() -> None:
    html = to_html(reports.example(), None, reports.Settings())

    assert "suppressed" not in html
    assert '<td class="n">hidden</td>' in html
    assert "<b>hidden</b>: fewer than 10 users" in html
    assert "None" not in html


def test_a_chart_says_its_numbers_in_words_and_as_a_table(html: str) -> None:
    figures = re.findall(r"<figure>.*?</figure>", html, re.DOTALL)

    assert len(figures) > 40
    for figure in figures:
        assert re.search(r'<svg role="img" aria-labelledby="c\d+t" aria-describedby="c\d+d"', figure)
        assert re.search(r"<title id=\"c\d+t\">[^<]+</title><desc id=\"c\d+d\">[^<]+\d[^<]*</desc>", figure)
        assert "<table>" in figure
        assert "undefined" not in figure
        assert "NaN" not in figure


def test_a_chart_takes_its_colours_from_the_page(html: str) -> None:
    charts_text = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))

    assert not re.findall(r'(?:fill|stroke)="(?!none|var\()[^"]*"', charts_text)


def test_a_segment_has_one_colour_everywhere(html: str, report: Report) -> None:
    for segment in report.segments:
        name = re.escape(segment.name)
        swatches = set(re.findall(rf'swatch (s\d)"></span>(?:<span class="name">| <a [^>]*>)?\s*{name}', html))
        assert len(swatches) == 1


def test_labels_of_a_chart_that_look_alike_stay_apart() -> None:
    long = "the same beginning of a label that goes on and on, "
    drawing = charts.bars("t", [charts.Bar(long + end, 0.5, "50 %") for end in ("a", "b")], "share")

    assert charts.draw([drawing])[0].count("<path") == 2


def test_a_difference_stands_beside_a_line_at_zero() -> None:
    drawing = charts.dots("t", [charts.Dot("sessions", 1.0, "6", "2")], "s0", "here", "everyone else")

    assert charts.draw([drawing])[0].count("stroke-dasharray") == 1


def test_an_hour_that_is_not_shown_is_marked_and_not_drawn_as_none() -> None:
    hours = [charts.Cell("00", 0.5, "50 %", None, "hidden"), charts.Cell("01", None, "hidden", 0.5, "50 %")]
    (drawn,) = charts.draw([charts.strip("t", hours, "s0", "here", "everyone")])

    assert drawn.count(">×</text>") == 2


def test_what_is_personal_is_not_in_the_file(users: pa.Table) -> None:
    report = reports.example().model_copy(update={"user_ids_personal": True})
    html = to_html(report, users, reports.Settings(personal=["region", "user_id"]))

    names = [column["name"] for column in packed(html)["columns"]]
    assert "attribute_region" not in names
    assert "user_id" not in names
    assert "attribute_age_band" in names
    assert names[0] == "user_number"
    assert str(report.segments[0].top_users[0].user_id) not in html
    assert "No. " in html


def test_without_lists_there_is_no_user_in_the_file_but_the_most_active(users: pa.Table) -> None:
    html = to_html(reports.example(), users, reports.Settings(user_lists=False))

    assert 'id="users"' not in html
    assert 'class="users"' not in html


def test_what_segments_say_about_the_future_is_said_or_that_it_is_not_known() -> None:
    told = Foretold(
        outcome="revenue",
        metric="R²",
        segments=0.24,
        rivals={"k-means on RFM": -0.01},
        ahead=Estimate(value=0.25, low=0.1, high=0.4),
    )
    tells = Tells(
        learnt_as_of=reports.AS_OF,
        as_of=reports.AS_OF,
        days="28 days",
        users=600,
        sentence="They told much.",
        figures=[told],
    )

    known, unknown = (
        to_html(reports.example().model_copy(update={"tells": one}), None, reports.Settings()) for one in (tells, None)
    )
    assert "What these segments say about the next 28 days" in known
    assert '<td class="n">0.240</td><td class="n">−0.010</td><td class="n">0.250 (0.100 to 0.400)</td>' in known
    assert "What they say about the future is not known: " in unknown


def test_a_report_of_nobody_is_a_page() -> None:
    report = reports.example()
    update = {"users": 0, "sessions": 0, "breakdowns": [], "lifecycle": [], "metrics": [], "trend": [], "changes": None}
    empty = report.model_copy(
        update={
            "segments": [],
            "models": [],
            "overview": report.overview.model_copy(update=update),
            "comparison": report.comparison.model_copy(update={"features": [], "overlap": []}),
        }
    )

    assert "first version" in to_html(empty, None, reports.Settings())


def test_a_list_keeps_all_digits_where_they_fit(users: pa.Table) -> None:
    assert not pack(users, 10**7)[1]
    assert pack(users, 10**5)[1]


@pytest.mark.slow
def test_a_page_of_100_000_users_in_12_segments_stays_below_5_mb() -> None:
    report = reports.large(100_000, segment_count=12)

    assert len(to_html(report, reports.listed(report), reports.Settings()).encode()) < PAGE_BYTES


# In a browser


class Opened:
    """A report in a browser: what it complains of, and what it asks the network for."""

    def __init__(self, browser: Browser, file: Path, **options: Any) -> None:
        context = browser.new_context(**options)
        self.page: Page = context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", self._dismiss)
        self.page.on("request", self._note)
        self.page.goto(file.as_uri())

    def _dismiss(self, dialog: Dialog) -> None:
        self.complaints.append(dialog.message)
        dialog.dismiss()

    def _note(self, request: Request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.complaints.append(request.url)

    def go(self, fragment: str) -> None:
        self.page.evaluate("(fragment) => { location.hash = fragment }", fragment)
        self.page.locator(f"#{fragment}").wait_for(state="visible")

    def list_of(self, fragment: str) -> Any:
        self.go(fragment)
        found = self.page.locator(f"#{fragment} .users")
        found.locator("tbody tr").first.wait_for()
        return found

    def download(self, fragment: str) -> list[dict[str, str]]:
        found = self.list_of(fragment)
        with self.page.expect_download() as waiting:
            found.get_by_role("button", name="Download as CSV").click()
        text = Path(waiting.value.path()).read_bytes().decode()
        return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.fixture(scope="module")
def file(html: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(html, newline="")
    return file


def test_a_reader_goes_from_the_overview_to_a_segment(browser: Browser, file: Path, report: Report) -> None:
    opened = Opened(browser, file)
    name = report.segments[1].name
    assert opened.page.locator("h2:visible").all_inner_texts() == ["Overview"]

    opened.page.get_by_role("navigation").get_by_role("link", name=name).click()

    (heading,) = opened.page.locator("h2:visible").all_inner_texts()
    assert heading.strip().startswith(name)
    assert opened.page.url.endswith("#segment-S02")
    assert not opened.complaints


def test_a_list_is_sorted_by_a_column_and_back(browser: Browser, file: Path) -> None:
    opened = Opened(browser, file)
    found = opened.list_of("segment-S01")
    above = found.get_by_role("columnheader", name="Churn probability")
    column = [header.strip() for header in found.locator("thead th").all_inner_texts()].index("Churn probability")

    def shown() -> list[float]:
        texts = found.locator(f"tbody tr > :nth-child({column + 1})").all_inner_texts()
        return [float(text.removesuffix("%").strip()) for text in texts]

    above.get_by_role("button").click()
    assert above.get_attribute("aria-sort") == "ascending"
    assert shown() == sorted(shown())
    above.get_by_role("button").press("Enter")
    assert above.get_attribute("aria-sort") == "descending"
    assert shown() == sorted(shown(), reverse=True)
    assert "sorted by Churn probability, highest first" in found.get_by_role("status").inner_text()
    assert not opened.complaints


def test_a_list_shows_times_of_the_business_s_clocks_and_its_file_those_of_utc(browser: Browser, file: Path) -> None:
    opened = Opened(browser, file)
    shown = opened.list_of("segment-S01").locator("tbody tr").first
    user_id, time = shown.locator("th").inner_text(), shown.locator(".time").inner_text()
    [row] = [row for row in opened.download("segment-S01") if row["user_id"] == user_id]
    at = datetime.fromisoformat(row["last_seen_at"])

    assert row["last_seen_at"].endswith("Z")
    assert time == f"{at.astimezone(ZoneInfo('Europe/Berlin')):%Y-%m-%d %H:%M}"
    assert not opened.complaints


def test_a_list_is_searched_by_user_and_says_how_many_it_found(browser: Browser, file: Path, users: pa.Table) -> None:
    opened = Opened(browser, file)
    found = opened.list_of("segment-S01")
    members = users.filter(pc.equal(users["segment_id"], "S01"))["user_id"].to_pylist()

    found.get_by_role("searchbox").fill(members[7].upper())
    found.get_by_text(f"1 of {len(members)} users").wait_for()

    assert found.locator("tbody th").all_inner_texts() == [members[7]]
    found.get_by_role("searchbox").fill("nobody is called this")
    found.get_by_text(f"0 of {len(members)} users").wait_for()
    assert not opened.complaints


def test_a_list_is_turned_page_by_page(browser: Browser, file: Path, users: pa.Table) -> None:
    opened = Opened(browser, file)
    found = opened.list_of("segment-S01")
    members = users.filter(pc.equal(users["segment_id"], "S01"))["user_id"].to_pylist()
    assert found.locator("tbody th").all_inner_texts() == members[:50]

    found.get_by_role("button", name="Next", exact=True).click()
    assert found.locator("tbody th").all_inner_texts() == members[50:100]
    found.get_by_role("button", name="Last", exact=True).click()
    assert found.locator("tbody th").all_inner_texts()[-1] == members[-1]
    assert found.get_by_role("button", name="Next", exact=True).is_disabled()


@pytest.mark.parametrize("fragment", ["segment-S02", "segment-frequent_buyers"])
def test_the_file_of_a_list_has_the_rows_of_the_assignments(
    browser: Browser, file: Path, users: pa.Table, fragment: str
) -> None:
    opened = Opened(browser, file)
    if fragment == "segment-S02":
        expected = users.filter(pc.equal(users["segment_id"], "S02"))
    else:
        expected = users.filter(pa.array(["frequent_buyers" in rules for rules in users["rule_segments"].to_pylist()]))

    rows = opened.download(fragment)

    assert read(rows, users.schema) == expected.drop_columns(["user_number", "attribute_region"]).to_pylist()
    assert not opened.complaints


def test_hostile_ids_are_shown_searched_and_exported_and_run_nothing(browser: Browser, tmp_path: Path) -> None:
    report = reports.large(100, segment_count=1)
    users = reports.listed(report, ids=HOSTILE)
    file = tmp_path / "report.html"
    file.write_text(to_html(report, users, reports.Settings()), newline="")
    opened = Opened(browser, file)

    rows = opened.download("segment-S01")
    assert [row["user_id"] for row in rows] == [escape(user_id) for user_id in sorted(HOSTILE)]

    found = opened.page.locator("#segment-S01 .users")
    for wanted in ("<script>alert(1)", "line\nbreak", "x" * 10_000, 'quote " and'):
        found.get_by_role("searchbox").fill(wanted)
        found.get_by_text(f"1 of {len(HOSTILE)} users").wait_for()
    found.get_by_role("searchbox").fill("x" * 10_000)
    found.locator("summary").click()
    assert found.locator("tbody details").inner_text().count("x") >= 10_000
    assert not opened.complaints


@pytest.mark.slow
def test_axe_finds_no_serious_problem_in_a_segment(browser: Browser, file: Path) -> None:
    opened = Opened(browser, file)
    opened.list_of("segment-S01")

    assert problems(opened.page) == []


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark"}, {"viewport": PHONE}], ids=["light", "dark", "phone"])
def test_axe_finds_no_serious_problem(browser: Browser, file: Path, options: dict[str, Any]) -> None:
    opened = Opened(browser, file, **options)
    for fragment in ("overview", "comparison", "models", "segment-S01"):
        opened.go(fragment)
        if fragment == "segment-S01":
            opened.list_of(fragment)
        for details in opened.page.locator("summary:visible").all()[:3]:
            details.click()
        assert (fragment, problems(opened.page)) == (fragment, [])


def problems(page: Page) -> list[tuple[str, str]]:
    violations = Axe().run(page).response["violations"]
    serious = [one for one in violations if one["impact"] in ("serious", "critical")]
    return [(one["id"], node["html"][:200]) for one in serious for node in one["nodes"]]


def test_a_phone_scrolls_tables_and_not_the_page(browser: Browser, file: Path) -> None:
    opened = Opened(browser, file, viewport=PHONE)
    for fragment in ("overview", "segment-S01", "comparison", "models"):
        opened.go(fragment)
        assert opened.page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_without_scripts_all_sections_are_there(browser: Browser, file: Path, report: Report) -> None:
    opened = Opened(browser, file, java_script_enabled=False)

    assert len(opened.page.locator("h2:visible").all_inner_texts()) == len(report.segments) + 3
    assert opened.page.locator("noscript p").first.is_visible()


def test_a_print_has_all_sections_and_no_lists(browser: Browser, file: Path, report: Report) -> None:
    opened = Opened(browser, file)
    opened.page.emulate_media(media="print")

    assert len(opened.page.locator("h2:visible").all_inner_texts()) == len(report.segments) + 3
    assert not opened.page.locator(".users:visible").count()
    assert opened.page.pdf().startswith(b"%PDF")


def test_a_reader_chooses_what_is_compared(browser: Browser, file: Path, report: Report) -> None:
    opened = Opened(browser, file)
    opened.go("comparison")
    table = opened.page.locator("#comparison table").first
    name = report.segments[1].name
    assert table.get_by_role("columnheader", name=name).is_visible()

    opened.page.locator(".picks").get_by_label(name).uncheck()

    assert not table.get_by_role("columnheader", name=name).count()


def packed(html: str) -> dict[str, Any]:

    (text,) = re.findall(r'<script type="application/json" id="users"[^>]*>(.*?)</script>', html, re.DOTALL)
    found: dict[str, Any] = json.loads(text)
    return found


def read(rows: list[dict[str, str]], schema: pa.Schema) -> list[dict[str, Any]]:
    """Read a list's file back: nothing is null, lists are joined, instants end in Z."""

    def value(text: str, dtype: pa.DataType) -> Any:
        if pa.types.is_list(dtype):
            return text.split(" | ") if text else []
        if text == "" and not pa.types.is_string(dtype):
            return None
        if pa.types.is_timestamp(dtype):
            return datetime.fromisoformat(text)
        return float(text) if pa.types.is_floating(dtype) else int(text) if pa.types.is_integer(dtype) else text

    return [{name: value(text, schema.field(name).type) for name, text in row.items()} for row in rows]

"""`habitus publish` as a person runs it, on a small shop that has run."""

import shlex
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import adbc_driver_sqlite.dbapi as sqlite
import ibis
import pandas as pd
import pyarrow as pa
import pytest
from receiver import Receiver
from shops import Ran, habitus

import flows.publish
from features.events import EVENTS
from features.lake import Lake
from features.table import stack
from flows.configuration import Configuration, ConfigurationError, load
from flows.publish import Published, publish_version
from flows.score import assign_users
from flows.snapshot import store_snapshots
from publish.assignments import ASSIGNMENTS
from publish.lock import LockedError, Work, publishing_lock, working_lock

AS_OF = datetime(2024, 6, 30, tzinfo=UTC)
DAY = timedelta(days=1)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SQL = """
[destinations.warehouse]
kind = "sql"
url = { env = "WAREHOUSE" }
purposes = []
"""
HOOK = """
[destinations.hook]
kind = "webhook"
url = { env = "HOOK" }
secret = { env = "HOOK_SECRET" }
attempts_max = 1
purposes = []
"""


ME = Work("report of shop", "UTC")


@pytest.fixture
def shop(ran: Ran, tmp_path: Path) -> Path:
    """Copy a shop that has run, and return its configuration's file."""
    shutil.copytree(ran.configuration.folder, tmp_path / "shop", symlinks=True)
    return tmp_path / "shop" / "habitus.toml"


@pytest.fixture
def warehouse(shop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WAREHOUSE", "sqlite:///warehouse.db")
    return shop.with_name("warehouse.db")


def configure(shop: Path, text: str) -> None:
    shop.write_text(shop.read_text() + text)


def publish(shop: Path, as_of: datetime | None = None) -> Published:
    return publish_version.fn(str(shop), as_of, None)


def states(published: Published) -> dict[str, str]:
    return {delivery.destination: delivery.state for delivery in published.deliveries}


def score_at(shop: Path, as_of: datetime, change: Callable[[pd.DataFrame], pd.DataFrame] = lambda rows: rows) -> None:
    """Have the assignments of AS_OF, changed, at another instant."""
    with Lake(load(shop).lake) as lake:
        rows = change(lake.read(ASSIGNMENTS, only=[AS_OF]).to_pandas()).assign(as_of=as_of)
        arrow = pa.Table.from_pandas(rows, ASSIGNMENTS.schema.to_pyarrow(), preserve_index=False)
        lake.write(ASSIGNMENTS, ibis.memtable(arrow), only=[as_of])


def ids_of(shop: Path) -> set[str]:
    return set(pd.read_parquet(shop.parent / "published" / "latest" / "assignments.parquet")["user_id"])


def who_did(shop: Path, *event_names: str) -> set[str]:
    with Lake(load(shop).lake) as lake:
        events = lake.read(EVENTS)
        return set(events.filter(events.event_name.isin(event_names)).user_id.to_pyarrow().to_pylist())


def ids_in(warehouse: Path) -> set[str]:
    with sqlite.connect(str(warehouse)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT user_id FROM habitus_assignments")
        return {user_id for (user_id,) in cursor.fetchall()}


def complaints(done: Any) -> list[str]:
    assert "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("habitus: ")]


def test_publishing_again_changes_nothing(shop: Path, warehouse: Path) -> None:
    configure(shop, SQL)
    first, again = publish(shop), publish(shop)

    assert states(first)["warehouse"] == "released"
    assert states(again) == {"published": "unchanged", "warehouse": "unchanged"}
    assert (again.version, again.changes) == (first.version, [])


# --- two at once ---


def test_who_cannot_wait_longer_for_another_is_refused(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.turns, "WAIT_S", 0)
    score_at(shop, AS_OF + DAY)
    before = (shop.parent / "published" / "latest").readlink()
    with (
        publishing_lock(load(shop).lake, ME, 0),
        pytest.raises(LockedError, match=r"is in use by report of shop \(process \d+, since "),
    ):
        publish(shop, AS_OF + DAY)

    assert (shop.parent / "published" / "latest").readlink() == before


def test_of_two_at_once_one_waits_and_finds_it_done(shop: Path, warehouse: Path) -> None:
    configure(shop, SQL)
    score_at(shop, AS_OF + DAY)
    with ThreadPoolExecutor(2) as both:
        first, second = both.map(lambda number: publish(shop, AS_OF + DAY), range(2))

    assert first.version == second.version
    assert sorted([states(first)["warehouse"], states(second)["warehouse"]]) == ["released", "unchanged"]
    assert [bool(one.changes) for one in (first, second)].count(True) == 1
    assert ids_in(warehouse) == ids_of(shop)


@pytest.mark.ci
def test_nothing_is_locked_while_a_receiver_takes_its_time(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(shop, HOOK)
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    lake = load(shop).lake
    with ThreadPoolExecutor(1) as other, Receiver(SECRET, ["processing"]) as receiver:
        monkeypatch.setenv("HOOK", receiver.url)
        published = other.submit(publish, shop)
        assert receiver.asked.wait(60)
        with working_lock(lake, ME, 0), publishing_lock(lake, ME, 0), Lake(lake) as mine, mine.alone(0):
            assert not published.done()
    assert states(published.result())["hook"] == "pending"


# --- destinations that fail ---


def test_a_destination_that_fails_is_one_line_and_gets_the_version_next_time(
    shop: Path, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(shop, SQL)
    score_at(shop, AS_OF + DAY)
    wrong = postgres.replace("postgres:@", "nobody:s3cr3t@")
    assert wrong != postgres
    monkeypatch.setenv("WAREHOUSE", wrong)
    done = habitus("publish", str(shop), "--as-of", "2024-07-01")

    assert done.exit_code == 1
    assert complaints(done) == ["habitus: warehouse: cannot connect: the user or the password is wrong"]
    assert "s3cr3t" not in done.stderr + done.stdout
    assert (shop.parent / "published" / "latest").readlink().name.startswith("2024-07-01")
    monkeypatch.setenv("WAREHOUSE", postgres)
    assert states(publish(shop, AS_OF + DAY)) == {"published": "unchanged", "warehouse": "released"}


def test_a_receiver_that_is_away_gets_all_changes_when_it_is_back(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(shop, HOOK)
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    with Receiver(SECRET) as receiver:
        monkeypatch.setenv("HOOK", receiver.url)
    away = publish(shop)
    with Receiver(SECRET) as receiver:
        monkeypatch.setenv("HOOK", receiver.url)
        back = publish(shop)

    assert (states(away)["hook"], states(back)["hook"]) == ("pending", "released")
    assert {user_id for user_id, _ in receiver.members} == ids_of(shop)
    assert len(receiver.applied) == len(set(receiver.applied))


def test_a_credential_that_is_not_there_is_one_line(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(shop, SQL)
    monkeypatch.delenv("WAREHOUSE", raising=False)
    done = habitus("publish", str(shop))

    assert done.exit_code == 2
    [complaint] = complaints(done)
    assert complaint.endswith("destinations.warehouse.url: the environment variable WAREHOUSE is not set")


# --- what is held ---


def swap(rows: pd.DataFrame) -> pd.DataFrame:
    """Have everyone in the segment of the runner-up."""
    return rows.assign(segment_id=rows["runner_up_segment_id"], runner_up_segment_id=rows["segment_id"])


def test_a_held_version_is_released_by_the_command_that_is_printed(shop: Path) -> None:
    score_at(shop, AS_OF + DAY, swap)
    before = (shop.parent / "published" / "latest").readlink()
    done = habitus("publish", str(shop), "--as-of", "2024-07-01")

    assert done.exit_code == 3
    assert (shop.parent / "published" / "latest").readlink() == before
    [line] = [line for line in done.stderr.splitlines() if "if that is right: " in line]
    program, *arguments = shlex.split(line.partition("if that is right: ")[2])
    assert program == "habitus"
    released = habitus(*arguments)
    assert released.exit_code == 0, released.stderr
    assert (shop.parent / "published" / "latest").readlink().name.startswith("2024-07-01")


def test_an_earlier_instant_is_held(shop: Path) -> None:
    score_at(shop, AS_OF - DAY)
    published = publish(shop, AS_OF - DAY)

    assert (published.as_of, published.version) == (AS_OF, 1)
    assert published.findings == [
        "as of 2024-06-29 00:00 UTC, which is before 2024-06-30 00:00 UTC, the released one",
    ]


def test_old_events_are_not_released_as_new(shop: Path) -> None:
    score_at(shop, AS_OF, lambda rows: rows.assign(segment_strength=0.5))
    published = publish_version.fn(str(shop), None, None, due=AS_OF + 90 * DAY)

    assert (published.as_of, published.version) == (AS_OF, 1)
    assert published.findings == [
        "the newest event is of 2024-06-29 22:02 UTC, 90.1 days before 2024-09-28 00:00 UTC; "
        "at most 3 (publish.max_lag_days)"
    ]


def test_an_instant_long_after_the_newest_event_is_held_even_before_the_first_release(shop: Path) -> None:
    for table in ("audiences", "versions", "released", "changes"):
        shutil.rmtree(shop.parent / "lake" / table)
    score_at(shop, AS_OF + 2 * DAY)
    score_at(shop, AS_OF + 3 * DAY)
    done = habitus("publish", str(shop), "--as-of", "2024-07-03")

    assert done.exit_code == 3
    assert "Published: nothing yet" in done.stdout
    assert "3.1 days before 2024-07-03 00:00 UTC; at most 3 (publish.max_lag_days)" in done.stderr
    [line] = [line for line in done.stderr.splitlines() if "if that is right: " in line]
    assert habitus(*shlex.split(line.partition("if that is right: habitus ")[2])).exit_code == 0
    assert publish(shop, AS_OF + 3 * DAY).version == 1
    assert publish(shop, AS_OF + 2 * DAY).findings[0].startswith("as of 2024-07-02 00:00 UTC, which is before")


def test_a_label_that_nothing_is_held_under_is_refused(ran: Ran) -> None:
    with pytest.raises(ConfigurationError, match="2024: no such version is held; nothing is held"):
        publish_version.fn(str(ran.configuration.file), None, "2024")


# --- why users move ---


def test_who_leaves_as_a_rule_lost_its_window_leaves_for_the_rule(shop: Path) -> None:
    configure(shop, "\n[features]\nwindows_days = [7]\n[publish.brake]\naudience_change_max = 1000\n")
    store_snapshots.fn(str(shop), AS_OF, training=False)
    assign_users.fn(str(shop), AS_OF)
    published = publish(shop, AS_OF)
    counts = {(one["change"], one["reason"]): one["users"] for one in published.changes}

    assert counts.pop(("left", "rule")) > 0
    assert counts.keys() <= {("left", "model"), ("entered", "model")}


# --- consent ---


def consenting(shop: Path, text: str) -> Configuration:
    """Have the published files be of those who agree to a purpose."""
    configure(shop, f'\n[publish]\npurposes = ["ads"]\n[purposes.ads]\n{text}\n')
    return load(shop)


def test_events_say_who_agrees_to_be_in_the_files(shop: Path) -> None:
    everyone = ids_of(shop)
    consenting(shop, 'granted_by = ["wishlist_add"]')
    publish(shop)

    assert ids_of(shop) == who_did(shop, "wishlist_add") & everyone
    assert 0 < len(ids_of(shop)) < len(everyone)


def test_a_user_who_withdrew_is_gone_from_everywhere_at_the_next_publish(
    shop: Path, warehouse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    configuration = consenting(shop, 'granted_by = ["wishlist_add"]\nwithdrawn_by = ["opt_out"]')
    configure(shop, SQL.replace("[]", '["ads"]') + HOOK.replace("[]", '["ads"]'))
    with Receiver(SECRET) as receiver:
        monkeypatch.setenv("HOOK", receiver.url)
        publish(shop)
        user_id, *others = sorted(ids_of(shop))
        with Lake(configuration.lake) as lake:
            said: dict[str, Any] = {
                "event_id": "out",
                "user_id": user_id,
                "event_name": "opt_out",
                "source_file": "events.csv.gz",
            }
            said |= {"occurred_at": AS_OF + 90 * DAY, "ingested_at": AS_OF + 90 * DAY}
            row = ibis.memtable(pa.Table.from_pylist([said], schema=EVENTS.schema.to_pyarrow()))
            lake.write(EVENTS, stack(lake.read(EVENTS, only=[AS_OF + 90 * DAY]), row), only=[AS_OF + 90 * DAY])
        publish(shop, AS_OF)

    assert ids_of(shop) == ids_in(warehouse) == {user_id for user_id, _ in receiver.members} == set(others)
    assert {change["reason"] for (of, _), change in receiver.newest.items() if of == user_id} == {"consent"}


def test_a_yes_that_nobody_gave_is_refused(shop: Path) -> None:
    consenting(shop, 'withdrawn_by = ["opt_uot"]\nmissing = "yes"')
    before = ids_of(shop)
    with pytest.raises(ConfigurationError, match=r"purposes\.ads: nobody has said yes or no"):
        publish(shop)

    assert ids_of(shop) == before

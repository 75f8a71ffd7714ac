"""From assignments to what destinations get, on a real lake."""

import json
import random
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import ibis
import ibis.expr.types as ir
import pandas as pd
import pyarrow as pa
import pytest
from histories import instant

from features.lake import Lake
from features.table import Table
from models.rfm import Lines, Scale
from publish import versions
from publish.assignments import ASSIGNMENTS
from publish.audiences import AUDIENCES, members_of
from publish.brake import BrakeSettings
from publish.changes import CHANGES, Otherwise, replay
from publish.destination import Delivery, DestinationError, DestinationSettings, Release
from publish.lock import delivering_lock
from publish.release import Candidate, Outcome, Policy, deliver, publish, release_for
from publish.versions import HELD, VERSIONS, Version, present, read_changes, read_held

AS_OF = instant("2024-06-30T05:00:00")
DAY = timedelta(days=1)
DEFAULTS = {
    **{"segment_id": "S01", "rule_segments": [], "lifecycle_stage": "active"},
    **{"churn_reasons": [], "conversion_reasons": [], "holdout": False, "held_out_of": [], "segment_strengths": []},
}
OPEN = DestinationSettings(purposes=[])
ADS = DestinationSettings(purposes=["ads"])
FREE = BrakeSettings(audience_change_max=1e9, users_loss_max=1)
NAMES = {"S01": "Loyal", "S02": "Lapsing"}


@dataclass
class Shop:
    """A lake, what may leave it, and the consents of its users."""

    lake: Lake
    destinations: Mapping[str, DestinationSettings] = field(default_factory=lambda: {"crm": OPEN, "ads": ADS})
    granted: set[str] = field(default_factory=set)
    brake: BrakeSettings = FREE
    rules: dict[str, str] = field(default_factory=lambda: {"new": "tenure_days <= 7"})
    rules_off: list[str] = field(default_factory=list)
    gap_s: int = 1800
    levels: dict[str, float] = field(default_factory=dict)
    lines: Lines | None = None
    model: int = 1

    def publish(
        self,
        day: int,
        *users: dict[str, Any] | str,
        label: str | None = None,
        doubts: Sequence[str] = (),
        otherwise: Callable[[Version], Otherwise | None] = lambda before: None,
    ) -> Outcome:
        """Publish users, given by what matters of them, some days after AS_OF."""
        as_of = AS_OF + day * DAY
        given: list[dict[str, Any]] = [{"user_id": user} if isinstance(user, str) else user for user in users]
        rows: list[dict[str, Any]] = [DEFAULTS | row | {"as_of": as_of} for row in given]
        for row in rows:
            row["segment_name"] = NAMES.get(row["segment_id"])
        arrow = pa.Table.from_pylist(rows, schema=ASSIGNMENTS.schema.to_pyarrow())
        assignments = self.lake.engine.create_table(ibis.util.gen_name("rows"), arrow, temp=True)
        manifest = {
            "source": "shop",
            "labels": ["churn", "conversion"],
            "models": {"segments": self.model, "churn": None, "conversion": None},
            "configuration": "c" * 64,
            "withheld": {},
            "segments": NAMES,
            "rules": {name: {"title": name.title(), "condition": text} for name, text in self.rules.items()},
            "rules_off": self.rules_off,
            "definitions": [self.gap_s],
            "levels": self.levels,
            "rfm": self.lines and self.lines.to_dict(),
        }
        content = str(hash(str(sorted(map(str, rows))))).zfill(20)
        candidate = Candidate(assignments, as_of, content, manifest)
        policy = Policy(self.destinations, self._consents, self.brake, "shop")
        return publish(self.lake, candidate, policy, otherwise, label, doubts)

    def _consents(self, users: ir.Table) -> ir.Table:
        granted = users.user_id.isin(sorted(self.granted)) if self.granted else ibis.literal(False)
        return users.select("user_id", purpose=ibis.literal("ads"), granted=granted)

    def release(self, destination: str) -> Release:
        version = present(self.lake)
        assert version is not None
        users = versions.read_released(self.lake, version).select("user_id")
        none = ibis.null("string")
        contacts = users.mutate(email=users.user_id + "@example.org", phone=none)
        return release_for(self.lake, version, destination, self.destinations[destination], contacts)

    def members(self, destination: str = "crm") -> set[tuple[str, str]]:
        rows = self.release(destination).members.to_pyarrow().to_pylist()
        return {(row["user_id"], row["segment_id"]) for row in rows}

    def feed(self) -> list[tuple[Any, ...]]:
        """Return version, destination, user, change, segment and reason of all changes."""
        version = present(self.lake)
        assert version is not None
        rows = read_changes(self.lake, version.version).to_pyarrow().to_pylist()
        names = ("version", "destination", "user_id", "change", "segment_id", "reason")
        return sorted(tuple(row[name] for name in names) for row in rows)

    def replayed(self, destination: str = "crm") -> set[tuple[str, str]]:
        version = present(self.lake)
        assert version is not None
        rows = replay(read_changes(self.lake, version.version)).to_pyarrow().to_pylist()
        return {(row["user_id"], row["segment_id"]) for row in rows if row["destination"] == destination}


@pytest.fixture
def shop(lake: Lake) -> Shop:
    return Shop(lake)


MANY = [f"user-{number}" for number in range(200)]


def moved(users: list[str]) -> list[dict[str, Any]]:
    return [{"user_id": user, "segment_id": "S02"} for user in users]


class Begin(Protocol):
    def __call__(self, *users: str, granted: Collection[str] = ()) -> Shop:
        """Return a shop that has published users on day 0, when some granted that ads may have them."""


@pytest.fixture(scope="module")
def first_version(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...], frozenset[str]], Path]:
    """Publish users on day 0, once for all tests that begin with them."""

    @cache
    def publish_once(users: tuple[str, ...], granted: frozenset[str]) -> Path:
        with Lake(tmp_path_factory.mktemp("first") / "lake") as lake:
            Shop(lake, granted={*granted}).publish(0, *users)
            return lake.folder

    return publish_once


@pytest.fixture
def begin(
    first_version: Callable[[tuple[str, ...], frozenset[str]], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Begin]:
    with ExitStack() as opened:

        def copy(*users: str, granted: Collection[str] = ()) -> Shop:
            folder = tmp_path_factory.mktemp("copy") / "lake"
            shutil.copytree(first_version(users, frozenset(granted)), folder)
            return Shop(opened.enter_context(Lake(folder)), granted={*granted})

        yield copy


def test_nothing_is_present_before_the_first_version(shop: Shop) -> None:
    assert present(shop.lake) is None


def test_at_the_first_version_all_users_enter(shop: Shop) -> None:
    outcome = shop.publish(0, "ada", "ben")
    assert outcome.version is not None
    assert (outcome.version.version, outcome.version.as_of, outcome.held) == (1, AS_OF, None)
    assert outcome.changes.to_dict("records") == [
        {"destination": "crm", "change": "entered", "reason": "new_user", "users": 2}
    ]
    assert shop.members() == {("ada", "S01"), ("ben", "S01")}
    assert shop.members("ads") == set()


def test_the_same_again_is_no_new_version(begin: Begin) -> None:
    shop = begin("ada")
    before = shop.lake.version(AUDIENCES)
    outcome = shop.publish(0, "ada")
    assert outcome.version is not None
    assert (outcome.version.version, len(outcome.changes)) == (1, 0)
    assert shop.lake.version(AUDIENCES) == before


def test_a_version_is_said_in_the_same_bytes_now_and_after_a_crash(shop: Shop) -> None:
    outcome = shop.publish(0, "ada")
    again = present(shop.lake)
    assert outcome.version is not None
    assert again is not None
    assert json.dumps(outcome.version.manifest) == json.dumps(again.manifest)


def test_a_later_instant_is_a_new_version_though_nobody_moved(begin: Begin) -> None:
    shop = begin("ada")
    outcome = shop.publish(1, "ada")
    assert outcome.version is not None
    assert (outcome.version.version, len(outcome.changes)) == (2, 0)


def test_the_feed_says_who_moved_at_which_version(begin: Begin) -> None:
    shop = begin("ada", "ben")
    shop.publish(1, "ada", {"user_id": "ben", "segment_id": "S02"}, "cleo")
    assert [row for row in shop.feed() if row[0] == 2] == [
        (2, "crm", "ben", "entered", "S02", "behaviour"),
        (2, "crm", "ben", "left", "S01", "behaviour"),
        (2, "crm", "cleo", "entered", "S01", "new_user"),
    ]


def test_the_same_instant_scored_again_is_a_version_of_its_own(begin: Begin) -> None:
    shop = begin("ada")
    shop.publish(0, {"user_id": "ada", "segment_id": "S02"})
    assert [row[:4] for row in shop.feed()] == [
        (1, "crm", "ada", "entered"),
        (2, "crm", "ada", "entered"),
        (2, "crm", "ada", "left"),
    ]
    assert shop.replayed() == shop.members() == {("ada", "S02")}


def test_a_user_who_withdrew_leaves_with_the_next_publish_of_the_same_assignments(begin: Begin) -> None:
    shop = begin("ada", "ben", granted=["ada", "ben"])
    shop.granted = {"ada"}
    outcome = shop.publish(0, "ada", "ben")
    assert outcome.version is not None
    assert outcome.version.version == 2
    assert shop.members("ads") == {("ada", "S01")}
    assert shop.feed()[-1] == (2, "ads", "ben", "left", "S01", "consent")


def test_a_rule_that_was_redefined_is_the_reason_of_those_whom_only_it_moves(begin: Begin) -> None:
    new = {"rule_segments": ["new"]}
    shop = begin("ada", "ben")
    shop.rules = {"new": "tenure_days <= 30"}
    now = [{"user_id": "ada"} | new, {"user_id": "ben"} | new]

    def otherwise(before: Version) -> Otherwise:
        assert before.manifest["rules"]["new"]["condition"] == "tenure_days <= 7"
        rows = {"user_id": ["ada", "ben"], "segments": [["S01", "new"], ["S01"]]}
        return Otherwise(ibis.memtable(pa.table(rows)))

    shop.publish(1, *now, otherwise=otherwise)
    assert {(row[2], row[5]) for row in shop.feed() if row[0] == 2} == {("ada", "behaviour"), ("ben", "rule")}


def test_a_rule_whose_features_go_and_come_back_is_left_and_entered_for_the_rule(begin: Begin) -> None:
    new = {"user_id": "ada", "rule_segments": ["new"]}
    shop = begin("ada", "ben")
    shop.publish(1, new, "ben")
    shop.rules_off = ["new"]
    shop.publish(2, "ada", {"user_id": "ben", "segment_id": "S02"})
    shop.rules_off = []
    shop.publish(3, new, {"user_id": "ben", "segment_id": "S02"})
    assert [row for row in shop.feed() if row[0] > 1] == [
        (2, "crm", "ada", "entered", "new", "behaviour"),
        (3, "crm", "ada", "left", "new", "rule"),
        (3, "crm", "ben", "entered", "S02", "behaviour"),
        (3, "crm", "ben", "left", "S01", "behaviour"),
        (4, "crm", "ada", "entered", "new", "rule"),
    ]


def test_where_features_are_defined_otherwise_nothing_has_changed_by_behaviour(begin: Begin) -> None:
    shop = begin("ada")
    shop.gap_s = 600
    shop.publish(1, {"user_id": "ada", "segment_id": "S02", "rule_segments": ["new"]}, "ben")
    assert {(row[2], row[4], row[5]) for row in shop.feed() if row[0] == 2} == {
        ("ada", "S01", "model"),
        ("ada", "S02", "model"),
        ("ada", "new", "rule"),
        ("ben", "S01", "new_user"),
    }


def test_nobody_asks_what_would_have_been_where_nothing_was_redefined(shop: Shop) -> None:
    def otherwise(before: Version) -> None:
        raise AssertionError

    shop.publish(0, "ada", otherwise=otherwise)
    shop.publish(1, {"user_id": "ada", "segment_id": "S02"}, otherwise=otherwise)


# --- the brake ---


def test_a_version_that_changes_an_audience_too_much_is_held(begin: Begin) -> None:
    shop = begin(*MANY)
    shop.brake = BrakeSettings()
    outcome = shop.publish(1, *moved(MANY[:120]), *MANY[120:])
    assert outcome.held is not None
    assert outcome.held.findings == [
        "crm: S01 Loyal: 200 members, 120 would leave and 0 enter in 1 day (60 % fewer; usual is 0 %, at most 50 %)"
    ]
    assert outcome.version is not None
    assert (outcome.version.version, len(shop.members())) == (1, 200)
    assert [one.label for one in read_held(shop.lake)] == [outcome.held.label]


def test_what_audiences_did_at_earlier_versions_is_usual(shop: Shop) -> None:
    halves = MANY[:100], MANY[100:]
    for day in range(4):
        shop.granted = {*MANY[day:]}
        shop.publish(day, *moved(halves[day % 2]), *halves[1 - day % 2])
    shop.granted -= {"user-100"}
    shop.publish(3, *moved(halves[1]), *halves[0])
    shop.brake = BrakeSettings()
    assert shop.publish(4, *moved(halves[0]), *halves[1]).held is None
    held = shop.publish(5, *moved(MANY)).held
    assert held is not None
    assert "ads: S01 Loyal: 99 members, 99 would leave and 0 enter in 1 day" in held.findings[-1]


def test_members_who_are_not_new_any_more_do_not_brake(shop: Shop) -> None:
    shop.brake = BrakeSettings()
    new = [{"user_id": user, "rule_segments": ["new"]} for user in MANY]
    shop.publish(0, *new)
    later = [{"user_id": f"later-{number}", "rule_segments": ["new"]} for number in range(180)]
    assert shop.publish(7, *MANY, *later).held is None


def test_a_rule_that_nobody_met_and_all_meet_when_it_is_turned_round_is_held_and_a_new_one_is_not(begin: Begin) -> None:
    shop = begin(*MANY)
    shop.brake = BrakeSettings()
    all_of_them = [{"user_id": user, "rule_segments": ["later", "new"]} for user in MANY]
    shop.rules = {"new": "tenure_days > 7", "later": "tenure_days >= 0"}
    held = shop.publish(1, *all_of_them).held
    assert held is not None
    assert [finding.partition(":")[2][:5] for finding in held.findings] == [" new "]


def test_levels_are_compared_with_those_of_the_released_version(begin: Begin) -> None:
    shop = begin("ada")
    shop.brake = BrakeSettings()
    shop.levels = {"revenue_total": 40.0}
    assert shop.publish(1, "ada").held is None  # the version before says nothing of it
    shop.levels = {"revenue_total": 80.0}
    held = shop.publish(2, "ada").held
    assert held is not None
    assert held.findings == ["revenue, the median of users with any: 40 before, 80 now (100 % more; at most 50 %)"]


def test_an_audience_that_falls_below_members_min_is_no_reason_to_hold(shop: Shop) -> None:
    shop.destinations = {"crm": DestinationSettings(purposes=[], members_min=200)}
    shop.brake = BrakeSettings()
    shop.publish(0, *MANY)
    assert shop.publish(1, *moved(MANY[:1]), *MANY[1:]).held is None
    assert shop.members() == set()


@pytest.fixture(scope="module")
def lake_that_holds(
    first_version: Callable[[tuple[str, ...], frozenset[str]], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Hold a version of day 1 in which all users have moved."""
    folder = tmp_path_factory.mktemp("holds") / "lake"
    with Lake(shutil.copytree(first_version(tuple(MANY), frozenset()), folder)) as lake:
        assert Shop(lake, brake=BrakeSettings()).publish(1, *moved(MANY)).held
    return folder


@pytest.fixture
def shop_that_holds(lake_that_holds: Path, tmp_path: Path) -> Iterator[Shop]:
    with Lake(shutil.copytree(lake_that_holds, tmp_path / "lake")) as lake:
        yield Shop(lake, brake=BrakeSettings())


def test_a_held_version_is_released_by_its_label(shop_that_holds: Shop) -> None:
    shop = shop_that_holds
    [held] = read_held(shop.lake)
    outcome = shop.publish(1, *moved(MANY), label=held.label)
    assert outcome.held is None
    assert outcome.version is not None
    assert outcome.version.version == 2
    assert {segment for _, segment in shop.members()} == {"S02"}
    assert read_held(shop.lake) == []


def test_another_label_releases_nothing(begin: Begin) -> None:
    shop = begin(*MANY)
    shop.brake = BrakeSettings()
    assert shop.publish(1, *moved(MANY), label="2024-01-01T000000Z-0").held is not None


def test_far_fewer_users_are_held(begin: Begin) -> None:
    shop = begin(*MANY)
    shop.brake = BrakeSettings()
    held = shop.publish(1, *MANY[:100]).held
    assert held is not None
    assert held.findings[0] == "users: 200 before, 100 now (50 % fewer; at most 20 %)"


def test_an_earlier_instant_is_held(begin: Begin) -> None:
    shop = begin("ada")
    shop.brake = BrakeSettings()
    held = shop.publish(-1, "ada").held
    assert held is not None
    assert "before" in held.findings[0]


def test_what_is_doubted_is_held_before_all_that_the_brake_says(shop_that_holds: Shop) -> None:
    held = shop_that_holds.publish(1, *moved(MANY), doubts=["the newest event is old"]).held
    assert held is not None
    assert held.findings[0] == "the newest event is old"
    assert len(held.findings) == 2


def test_a_first_version_that_is_doubted_is_held_until_it_is_released(shop: Shop) -> None:
    outcome = shop.publish(0, "ada", doubts=["the newest event is old"])
    assert outcome.version is None
    assert outcome.changes.empty
    assert outcome.held is not None
    assert outcome.held.findings == ["the newest event is old"]
    assert present(shop.lake) is None
    released = shop.publish(0, "ada", label=outcome.held.label, doubts=["the newest event is old"])
    assert (released.version, read_held(shop.lake)) == (present(shop.lake), [])
    assert shop.members() == {("ada", "S01")}


def test_what_is_released_already_is_not_doubted(begin: Begin) -> None:
    shop = begin("ada", "bo")
    assert shop.publish(0, "ada", "bo", doubts=["the newest event is old"]).held is None
    assert shop.publish(0, "ada", doubts=["the newest event is old"]).held is not None


def test_who_withdrew_leaves_although_the_version_is_held(begin: Begin) -> None:
    shop = begin(*MANY, granted=MANY)
    shop.brake = BrakeSettings()
    shop.granted -= {"user-7"}
    outcome = shop.publish(1, *moved(MANY))
    assert outcome.held is not None
    assert outcome.version is not None
    assert (outcome.version.version, outcome.version.as_of) == (2, AS_OF)
    assert len(shop.members("ads")) == 199
    assert shop.feed()[-1] == (2, "ads", "user-7", "left", "S01", "consent")


def test_many_who_withdrew_are_no_reason_to_hold(begin: Begin) -> None:
    shop = begin(*MANY, granted=MANY)
    shop.brake = BrakeSettings()
    shop.granted = set()
    assert shop.publish(1, *MANY).held is None
    assert shop.members("ads") == set()


def test_a_later_version_that_passes_makes_the_held_one_needless(shop_that_holds: Shop) -> None:
    assert read_held(shop_that_holds.lake) != []
    shop_that_holds.publish(2, *MANY)
    assert read_held(shop_that_holds.lake) == []


# --- what stays when a process is killed ---


class Killed(BaseException):
    """What a test raises where a process would die."""


TABLES = (CHANGES, VERSIONS, AUDIENCES, HELD)


def rows_of(lake: Lake) -> dict[str, Any]:
    found = {
        table.name: lake.read(table).to_pyarrow().sort_by([(key, "ascending") for key in table.key]) for table in TABLES
    }
    version = present(lake)
    assert version is not None
    released = versions.read_released(lake, version).order_by("user_id").to_pyarrow()
    return found | {"released": released, "number": version.version}


def test_a_version_of_before_columns_were_added_is_read_with_nothing_in_them(shop: Shop) -> None:
    shop.publish(0, *MANY)
    released = versions.released_table(["churn", "conversion"])
    added = ("segment_strengths", "rfm_3", "rfm_5")
    columns = {name: dtype for name, dtype in released.schema.items() if name not in added}
    earlier = replace(released, schema=ibis.schema(columns))
    rows = shop.lake.read(released).drop(*added)
    shop.lake.write(earlier, rows)
    shop.lake.note(AUDIENCES, {"version": 1, "released": shop.lake.version(earlier)})

    outcome = shop.publish(1, *MANY, {"user_id": "new", "rfm_3": "3-1-2"})
    assert outcome.held is None
    version = present(shop.lake)
    assert version is not None
    assert version.version == 2
    told = versions.read_released(shop.lake, version).filter(lambda rows: rows.rfm_3.notnull())
    assert told.user_id.to_pyarrow().to_pylist() == ["new"]


def test_lines_that_a_training_draws_anew_are_the_reason_of_those_whom_only_they_move(shop: Shop) -> None:
    scale = Scale("recency_days", (2.0, 3.0), (2.0, 3.0, 4.0, 5.0))
    lines = Lines(scale, scale, scale)
    shop.rules, shop.lines = {"few": "rfm_recency_grade = 1", "own": "recency_days < 2"}, lines
    shop.publish(0, {"user_id": "ann", "rule_segments": ["few", "own"]}, *MANY)
    shop.lines = replace(lines, recency=replace(scale, fifths=(1.0, 3.0, 4.0, 5.0)))
    asked = []

    def otherwise(before: Version) -> Otherwise:
        asked.append(before.manifest["rfm"])
        users = {"user_id": ["ann"], "segments": [["few", "own"]]}
        schema = ibis.schema({"user_id": "string", "segments": "array<string>"})
        return Otherwise(ibis.memtable(pd.DataFrame(users), schema=schema), set())

    shop.publish(1, "ann", *MANY, otherwise=otherwise)
    shop.publish(2, "ann", *MANY, otherwise=otherwise)
    left = {(user, segment): reason for _, _, user, change, segment, reason in shop.feed() if change == "left"}
    assert left["ann", "few"] == "rule"
    assert left["ann", "own"] == "behaviour"
    assert [Lines.from_dict(told) for told in asked] == [lines]  # and not where they had stayed


@pytest.mark.parametrize("survived", [1, *(pytest.param(count, marks=pytest.mark.slow) for count in (0, 2, 3))])
def test_what_was_written_before_the_last_commit_is_written_again(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    undisturbed, shop = begin("ada", "ben"), begin("ada", "ben")
    undisturbed.publish(2, "ada", "cleo", "dan")
    writes = iter(range(survived))
    write = Lake.write

    def dying_write(lake: Lake, table: Table, *args: Any, **named: Any) -> bool:
        if next(writes, None) is None:
            raise Killed
        return write(lake, table, *args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "write", dying_write)
        with pytest.raises(Killed):
            shop.publish(1, {"user_id": "ada", "segment_id": "S02"}, "cleo")
    assert present(shop.lake) is not None
    assert shop.members() == shop.replayed() == {("ada", "S01"), ("ben", "S01")}
    shop.publish(2, "ada", "cleo", "dan")
    assert rows_of(shop.lake) == rows_of(undisturbed.lake)


# --- destinations ---


@dataclass
class Receiver:
    """A destination that keeps what it is given, or fails."""

    error: Exception | None = None
    releases: list[Release] = field(default_factory=list)

    def deliver(self, release: Release) -> Delivery:
        if self.error:
            raise self.error
        self.releases.append(release)
        return Delivery(release.destination, "released", "here", release.rows.count().to_pyarrow().as_py())

    def forget(self, memberships: Mapping[str, Sequence[str]]) -> int:
        return 0


def deliver_all(shop: Shop, receivers: dict[str, Receiver]) -> list[Delivery]:
    version = present(shop.lake)
    assert version is not None
    nobody = versions.read_released(shop.lake, version).limit(0)
    contacts = nobody.select("user_id", email="segment_id", phone="segment_id")
    releases = {name: release_for(shop.lake, version, name, shop.destinations[name], contacts) for name in receivers}
    return [*deliver(shop.lake, releases, receivers, 0).values()]


@pytest.mark.parametrize("error", [DestinationError("the key is wrong"), OSError(28, "No space left on device")])
def test_a_destination_that_fails_leaves_the_others_alone(begin: Begin, error: Exception) -> None:
    shop = begin("ada")
    crm, ads = deliver_all(shop, {"crm": Receiver(error), "ads": Receiver()})
    assert (crm.state, crm.note) == ("failed", str(error))
    assert ads.state == "released"


def test_a_version_that_another_overtook_does_not_go_there_any_more(begin: Begin) -> None:
    shop = begin("ada")
    crm, earlier = Receiver(), shop.release("crm")
    shop.publish(1, {"user_id": "ada", "segment_id": "S02"})
    told = deliver(shop.lake, {"crm": earlier}, {"crm": crm}, 0)["crm"]
    assert (told.state, told.note) == ("unchanged", "version 2 was published meanwhile, and goes there instead")
    assert crm.releases == []


def test_what_another_process_takes_to_a_destination_is_left_to_it(begin: Begin) -> None:
    shop = begin("ada")
    with delivering_lock(shop.lake.folder, "crm", 0):
        crm, ads = deliver_all(shop, {"crm": Receiver(), "ads": Receiver()})
    assert crm.state == "failed"
    assert re.search(r"in use by delivery to crm \(process \d+, .*, which did not end within 0 s", crm.note)
    assert ads.state == "released"


def test_a_destination_gets_all_changes_since_the_version_it_holds(begin: Begin) -> None:
    shop = begin("ada")
    for day, segment in enumerate(["S02", "S01"], start=1):
        shop.publish(day, {"user_id": "ada", "segment_id": segment})
    changes = shop.release("crm").changes(1).to_pyarrow().to_pylist()
    assert sorted(row["version"] for row in changes) == [2, 2, 3, 3]
    assert len(shop.release("crm").changes(3).to_pyarrow()) == 0


def test_a_destination_gets_contacts_only_of_users_it_may_know(begin: Begin) -> None:
    shop = begin("ada", "ben", granted=["ada"])
    assert shop.release("ads").contacts.user_id.to_pyarrow().to_pylist() == ["ada"]


def test_a_destination_without_a_purpose_gets_nobodys_contacts(begin: Begin) -> None:
    shop = begin("ada", "ben", granted=["ada"])
    assert shop.destinations["crm"].purposes in (None, [])
    assert len(shop.release("crm").rows.to_pyarrow()) == 2
    assert shop.release("crm").contacts.user_id.to_pyarrow().to_pylist() == []


def test_the_manifest_says_what_was_refused_and_why(begin: Begin) -> None:
    shop = begin("ada", "ben", granted=["ada"])
    manifest = shop.release("ads").manifest
    assert (manifest["users"], manifest["version"]) == (1, 1)
    assert manifest["refused"] == {"users": {"consent": 1}, "held_out": {}, "held_back": {}}


def test_members_have_the_names_of_their_segments(shop: Shop) -> None:
    shop.publish(0, {"user_id": "ada", "rule_segments": ["new"]})
    rows = shop.release("crm").members.to_pyarrow().to_pylist()
    assert {(row["segment_id"], row["segment_name"]) for row in rows} == {("S01", "Loyal"), ("new", "New")}


def test_what_is_at_a_destination_that_is_no_longer_configured_stays_and_is_counted(begin: Begin) -> None:
    shop = begin("ada", granted=["ada"])
    shop.destinations = {"crm": OPEN}
    assert shop.publish(1, "ada").abandoned == {"ads": 1}
    shop.destinations = {"crm": OPEN, "ads": ADS}
    shop.granted = set()
    shop.publish(2, "ada")
    assert shop.feed()[-1] == (3, "ads", "ada", "left", "S01", "consent")


def test_no_users_at_all_are_published(shop: Shop) -> None:
    outcome = shop.publish(0)
    assert outcome.version is not None
    assert (outcome.version.version, shop.members()) == (1, set())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_the_feed_replayed_is_what_destinations_hold(shop: Shop, seed: int) -> None:
    draw = random.Random(seed)
    users = [f"user-{number}" for number in range(8)]
    for _ in range(4):
        shop.granted = set(draw.sample(users, 5))
        shop.model = draw.choice([1, 2])
        shop.destinations = {
            "crm": DestinationSettings(
                purposes=[], holdout_share=draw.choice([0, 0.4]), members_min=draw.choice([0, 3])
            ),
            "ads": DestinationSettings(purposes=["ads"], segments=draw.choice([None, ["S01"], ["new", "S02"]])),
        }
        rows = [
            {
                "user_id": user,
                "segment_id": draw.choice(["S01", "S02", None]),
                "rule_segments": draw.choice([[], ["new"]]),
                "holdout": user == "user-0",
            }
            for user in draw.sample(users, 6)
        ]
        shop.publish(draw.randint(0, 5), *rows)
        for name in shop.destinations:
            assert shop.replayed(name) == shop.members(name)
        told = {user for user, _ in shop.members("ads")}
        told |= set(shop.release("ads").rows.user_id.to_pyarrow().to_pylist())
        assert told <= shop.granted - {"user-0"}
        assert not any(user == "user-0" for user, _ in shop.members("crm"))
    assert members_of("crm", shop.lake.read(AUDIENCES)).count().to_pyarrow().as_py() == len(shop.members("crm"))

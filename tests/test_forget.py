"""`habitus forget`: the command, on a finished run of a small shop."""

import json
import os
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from messages import assert_documented
from shops import Ran, habitus
from stores import places_of

import flows.forget
from features.events import EVENTS, REJECTED
from features.lake import Lake
from features.sessions import SESSIONS
from flows.configuration import ConfigurationError, load
from flows.ingest import accept_files
from flows.schedule import next_training
from publish.destination import Delivery, DestinationError, Release

ANN, BOB = "user_0001", "user_0002"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@dataclass
class Away:
    """A destination that is away until it is not."""

    is_away: bool = True

    def deliver(self, release: Release) -> Delivery:
        raise NotImplementedError

    def forget(self, memberships: Mapping[str, Sequence[str]]) -> int:
        if self.is_away:
            raise DestinationError("the disk is not there: mount it")
        return len(memberships)


@pytest.fixture(scope="module")
def shop(ran: Ran, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the shop of a finished run: its configuration."""
    folder = tmp_path_factory.mktemp("forget") / "shop"
    shutil.copytree(ran.configuration.folder, folder, symlinks=True)
    return folder / "habitus.toml"


@pytest.fixture(scope="module")
def forgotten(shop: Path) -> dict[str, Any]:
    """Forget the first user, who is named twice, once; what the command says."""
    done = habitus("forget", ANN, ANN, "--config", str(shop), "--json")
    assert done.exit_code == 0, done.stderr
    assert ANN not in done.stdout + done.stderr
    [receipt] = json.loads(done.stdout)["receipts"].values()
    told: dict[str, Any] = receipt
    return told


def users_of(shop: Path) -> set[str]:
    with Lake(load(shop).lake) as lake:
        return set(lake.read(EVENTS).select("user_id").distinct().user_id.to_pyarrow().to_pylist())


def test_no_byte_of_the_lake_and_the_models_holds_the_id(shop: Path, forgotten: dict[str, Any]) -> None:
    of_ann, of_bob = places_of(load(shop).lake, ANN, BOB)
    assert len(of_bob) > 10  # there is something to find
    assert of_ann == []
    assert places_of(load(shop).mlruns, ANN, BOB) == [[], []]


def test_prefect_is_told_no_id(forgotten: dict[str, Any]) -> None:
    database = Path(os.environ["PREFECT_HOME"]) / "prefect.db"
    with sqlite3.connect(database) as store:
        dump = "\n".join(store.iterdump())
    assert "forget" in dump
    assert ANN not in dump


def test_the_receipt_lists_the_models_trained_on_the_user(forgotten: dict[str, Any]) -> None:
    models = {one["name"]: one for one in forgotten["models"]}
    assert models.keys() == {"ecom-segments", "ecom-churn", "ecom-conversion"}
    assert models["ecom-segments"]["serving"]
    assert forgotten["completed_at"]


def test_the_receipt_says_which_stores_were_searched_and_which_were_not(forgotten: dict[str, Any]) -> None:
    assert forgotten["searched"] == ["lake", "published"]
    assert [store.partition(":")[0] for store in forgotten["not_searched"][:2]] == ["MLflow's store", "Prefect's store"]


def test_the_receipt_counts_what_went(shop: Path, forgotten: dict[str, Any]) -> None:
    assert forgotten["rows"]["events"] > 0
    assert forgotten["rows"]["sessions"] > 0
    assert forgotten["rows"]["assignments"] == 1
    assert forgotten["texts"] == 2  # the broken rows of the small shop name this user
    [file] = (load(shop).lake / "receipts").iterdir()
    assert json.loads(file.read_text())["users"] == forgotten["users"]


def test_reading_all_files_again_does_not_bring_the_user_back(shop: Path, forgotten: dict[str, Any]) -> None:
    before = users_of(shop)
    assert habitus("sessions", str(shop)).exit_code == 0
    ingested = accept_files.fn(str(shop), NOW, rebuild=True)
    assert users_of(shop) == before
    assert ingested.accepted + sum(ingested.rejected.values()) == ingested.read
    assert ingested.batch.accepted + sum(ingested.batch.rejected.values()) == ingested.batch.read
    assert ingested.rejected["erased"] == forgotten["rows"]["events"]
    assert places_of(load(shop).lake / "rejected", ANN) == [[]]
    with Lake(load(shop).lake) as lake:
        rejected = lake.read(REJECTED)
        assert rejected.filter(rejected.row.notnull()).count().to_pyarrow().as_py() == 1


@pytest.mark.slow
def test_sessions_are_not_made_anew_afterwards(ran: Ran, tmp_path: Path) -> None:
    config = Path(shutil.copytree(ran.configuration.folder, tmp_path / "shop", symlinks=True)) / "habitus.toml"
    assert habitus("forget", BOB, "--config", str(config)).exit_code == 0
    done = habitus("sessions", str(config), "--json")
    assert json.loads(done.stdout)["rebuilt"] is False
    with Lake(load(config).lake) as lake:
        assert lake.origin(SESSIONS)["events_version"] == lake.version(EVENTS)


# --- bad input ---


def contents(folder: Path) -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"
    }


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nobody", BOB], "nothing is known of 'nobody'; nobody was forgotten"),
        (["user_000"], "nothing is known of 'user_000'"),
        ([ANN], "nothing is known of 'user_0001'; nobody was forgotten: correct them or leave them out (1 of them was"),
        ([" "], "an id is empty, and names nobody"),
        (["x" * 100_000], "nothing is known of"),
        (["--from-file", "no.txt"], "--from-file no.txt: cannot be read: No such file or directory"),
    ],
)
def test_an_unknown_user_changes_nothing(
    shop: Path, forgotten: dict[str, Any], arguments: list[str], complaint: str
) -> None:
    before = contents(load(shop).lake)
    done = habitus("forget", *arguments, "--config", str(shop))
    assert (done.exit_code, done.stdout) == (2, "")
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert contents(load(shop).lake) == before


def test_without_a_lake_there_is_nobody_to_forget(tmp_path: Path, shop: Path) -> None:
    config = shutil.copy(shop, tmp_path)
    done = habitus("forget", ANN, "--config", str(config))
    assert done.exit_code == 2
    assert "there is nobody to forget" in done.stderr
    assert not (tmp_path / "lake").exists()


def test_ids_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "ids.txt"
    file.write_bytes(b"\xef\xbb\xbfann\r\n\r\n  bob \n")
    assert flows.forget.read_ids(file) == ["ann", "bob"]


def test_any_id_can_be_named_in_json_lines(tmp_path: Path) -> None:
    ids = ["a\nb", " ann ", "\u2028", 'quoted "bob"', "NUL\x00", "4711"]
    file = tmp_path / "ids.jsonl"
    file.write_text("".join(f"{json.dumps(user)}\n" for user in ids) + "\n")
    assert flows.forget.read_ids(file) == ids


@pytest.mark.parametrize("line", ["ann", "4711", '["ann"]', '"ann', '"\\ud800"', "[" * 10_000])
def test_what_is_no_json_text_is_refused_without_telling_it(tmp_path: Path, line: str) -> None:
    file = tmp_path / "ids.jsonl"
    file.write_text(f'"bob"\n{line}\n')
    with pytest.raises(ConfigurationError) as caught:
        flows.forget.read_ids(file)
    assert_documented("an id in a `.jsonl` file is not in quotes", str(caught.value), tmp_path)


# --- what waits ---


@pytest.mark.slow
def test_a_destination_that_was_away_is_asked_by_the_next_call(
    shop: Path, forgotten: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    crm = Away()
    monkeypatch.setattr(flows.forget, "connect_all", lambda configuration: {"crm": crm})
    done = habitus("forget", "user_0003", "--config", str(shop))
    assert done.exit_code == 1
    assert "not removed yet: the disk is not there" in " ".join(done.stdout.split())
    assert "user_0003" not in users_of(shop)
    crm.is_away = False
    done = habitus("forget", "--config", str(shop))
    assert done.exit_code == 0
    assert "removed in 1 places" in done.stdout
    assert not list((load(shop).lake / "receipts").glob("pending-*"))
    assert "nothing is unfinished" in habitus("forget", "--config", str(shop)).stdout


# --- when models are learnt anew ---

PREFECT = """
deployments:
  - {name: score, entrypoint: flows.run.refresh, parameters: {config: habitus.toml}, schedules: [{cron: "0 5 * * *"}]}
  - name: train
    entrypoint: flows.run.run
    parameters: {config: habitus.toml}
    schedules: SCHEDULES
"""


@pytest.mark.parametrize(
    ("schedules", "expected"),
    [
        ('[{cron: "0 3 * * 1", timezone: UTC}]', datetime(2026, 11, 23, 3, tzinfo=UTC)),
        ('[{cron: "0 3 * * 1", timezone: Europe/Berlin}]', datetime(2026, 11, 23, 2, tzinfo=UTC)),
        (
            '[{cron: "0 3 * * 1"}, {interval: 3600, anchor_date: "2026-01-01T00:30:00Z"}]',
            datetime(2026, 11, 22, 12, 30, tzinfo=UTC),
        ),
        ('[{cron: "0 3 * * 1", active: false}]', None),
        ("[]", None),
        ("[{cron: never}]", None),
    ],
)
def test_the_next_training_is_that_of_the_schedule(tmp_path: Path, schedules: str, expected: datetime | None) -> None:
    (tmp_path / "prefect.yaml").write_text(PREFECT.replace("SCHEDULES", schedules))
    assert next_training(tmp_path / "habitus.toml", tmp_path, NOW) == expected


@pytest.mark.parametrize("text", ["", "deployments: 3", "deployments: [3]", "{", None])
def test_what_is_no_prefect_yaml_schedules_nothing(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "prefect.yaml").write_text(text)
    assert next_training(tmp_path / "habitus.toml", tmp_path, NOW) is None


def test_another_configurations_training_is_not_this_ones(tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").write_text(PREFECT.replace("SCHEDULES", '[{cron: "0 3 * * 1"}]'))
    assert next_training(tmp_path / "other" / "habitus.toml", tmp_path, NOW) is None

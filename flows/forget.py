"""Forget: users are erased from all that Habitus holds, and from where it published them.

Prefect keeps the parameters of a run, so it is told no id: ids wait in the lake, in a file that only its owner may
read, and the flow takes them from there.
"""

import json
import logging
import secrets
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from prefect import task
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from features.erasures import ERASURES, ensure_salt, find_salt, hash_id
from features.lake import WAIT_S, Lake
from flows.configuration import Configuration, ConfigurationError, load
from flows.credentials import connect_all
from flows.schedule import next_training
from flows.stage import stage
from flows.train import LAST_SNAPSHOT, model_name
from flows.turns import publishing, turn
from flows.world import discreet
from models.registry import Registry
from publish import erasure
from publish.destination import Destination
from publish.destinations import drop_unconfigured
from publish.erasure import Found, Receipt, TrainedModel

logger = logging.getLogger("habitus")


@dataclass(frozen=True)
class Forgotten:
    """Hold the receipts of what was erased now, each with its file."""

    receipts: dict[Path, Receipt]

    @property
    def is_complete(self) -> bool:
        """Tell whether nothing is left to do."""
        return all(receipt.completed_at for receipt in self.receipts.values())


def begin(configuration: Configuration, users: Sequence[str], now: datetime) -> None:
    """Write down that users are to be erased. Those of an erasure that is not finished are, already.

    Raises ConfigurationError for users of whom there is nothing, and then nothing is written down.
    """
    if not all(map(str.strip, users)):
        raise ConfigurationError("an id is empty, and names nobody; nobody was forgotten")
    with turn(configuration, "forget"), open_lake(configuration) as lake:
        if not lake.tables():
            raise ConfigurationError(f"{configuration.lake} holds no tables: there is nobody to forget")
        waiting = {user for receipt in erasure.unfinished(lake) for user in erasure.read_pending(lake, receipt).users}
        asked = [user for user in dict.fromkeys(users) if user not in waiting]
        if not asked:
            return
        logger.debug("looking for %s users", len(asked))
        found = erasure.find(lake, asked)
        if found.unknown:
            raise ConfigurationError(_explain_unknown(lake, found.unknown))
        salt = ensure_salt(lake, _make_salt)
        destinations = connect_all(configuration)
        receipt = erasure.begin_receipt(
            f"{now:%Y-%m-%dT%H%M%SZ}-{secrets.token_hex(4)}",
            now,
            asked,
            found,
            destinations,
            salt,
            configuration=configuration.name,
            habitus=version("habitus"),
            models=_trained_on(configuration, found),
            next_training=next_training(configuration.file, Path.cwd(), now),
        )
        erasure.begin(lake, asked, found, destinations, receipt)
    logger.info("forget: %s users found; receipt %s begun", f"{len(asked):,}", receipt.receipt)


@stage()
def forget(config: str) -> Forgotten:
    """Finish the erasures that have begun: all tables and versions, then every destination."""
    forgotten = finish(config)
    for receipt in forgotten.receipts.values():
        rows = f"{sum(receipt.rows.values()):,} rows of {len(receipt.rows):,} tables"
        state = "done" if receipt.completed_at else "not done yet"
        logger.info("forget: %s, %s destinations; receipt %s %s", rows, len(receipt.places), receipt.receipt, state)
        for name, failure in receipt.failures.items():
            logger.warning("  %s: %s", name, failure)
    return forgotten


@task
@discreet
def finish(config: str) -> Forgotten:
    """Do what unfinished erasures have still to do."""
    configuration = load(config)
    with publishing(configuration, "forget"), open_lake(configuration) as lake:
        destinations = connect_all(configuration)
        drop_unconfigured(lake.folder, destinations)
        return finish_all(lake, destinations, datetime.now(UTC))


def finish_all(lake: Lake, destinations: Mapping[str, Destination], now: datetime) -> Forgotten:
    """Do what unfinished erasures of a lake have still to do; hold the publishing lock."""
    receipts = {}
    for receipt in erasure.unfinished(lake):
        pending = erasure.read_pending(lake, receipt)
        logger.debug("erasing %s users from the tables", len(pending.users))
        with lake.alone(WAIT_S):
            erasure.erase(lake, pending, ensure_salt(lake, _make_salt))
        logger.debug("erasing them from %s destinations", len(pending.memberships))
        receipts[erasure.receipt_file(lake, receipt)] = erasure.conclude(lake, pending, destinations, now)
    return Forgotten(receipts)


def read_ids(file: Path) -> list[str]:
    """Read ids, one on each line; blank lines are none, and blanks around an id are not of it.

    A file whose name ends with .jsonl has a JSON text on each line, which can be any id. Raises ConfigurationError for
    a file that cannot be read.
    """
    try:
        with file.open(encoding="utf-8-sig") as opened:
            lines = [line.strip() for line in opened]
    except OSError as error:
        raise ConfigurationError(f"--from-file {file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"--from-file {file}: cannot be read: it is not in UTF-8") from error
    if file.suffix == ".jsonl":
        ids = [_read_text(file, number, line) for number, line in enumerate(lines, start=1) if line]
    else:
        ids = [line for line in lines if line]
    if not ids:
        raise ConfigurationError(f"--from-file {file}: has no ids")
    return ids


def _read_text(file: Path, number: int, line: str) -> str:
    try:
        user = json.loads(line)
        user.encode()
    except (ValueError, AttributeError, RecursionError):
        raise ConfigurationError(
            f'--from-file {file}: line {number} is no JSON text: write each id in double quotes, as in "user-1"'
        ) from None
    return str(user)


def open_lake(configuration: Configuration) -> Lake:
    """Open the lake with DuckDB, whatever engine works on it: one partition at a time is no strain."""
    return configuration.open_lake("duckdb")


def _make_salt() -> str:
    return secrets.token_hex(32)


def _explain_unknown(lake: Lake, unknown: Sequence[str]) -> str:
    some = ", ".join(textwrap.shorten(repr(user), 60) for user in unknown[:3])
    more = f" and {len(unknown) - 3:,} more" if len(unknown) > 3 else ""
    text = f"nothing is known of {some}{more}; nobody was forgotten: correct them or leave them out"
    salt = find_salt(lake)
    if salt is None or not lake.has(ERASURES):
        return text
    erasures = lake.read(ERASURES)
    before = erasures.filter(erasures.user_hash.isin([hash_id(user, salt) for user in unknown])).count()
    count = before.to_pyarrow().as_py()
    return f"{text} ({count:,} of them {'was' if count == 1 else 'were'} forgotten before)" if count else text


def _trained_on(configuration: Configuration, found: Found) -> list[TrainedModel]:
    """List the versions of models that were made from a snapshot with users in it: its last was after they came."""
    if found.first_at is None or not configuration.mlruns.is_dir():
        return []
    registry = Registry(configuration.mlruns)
    models = []
    for kind in ("segments", *configuration.labels.named):
        name = model_name(configuration, kind)
        serving = registry.serving(name)
        for number, tag in sorted(registry.tags(name, LAST_SNAPSHOT).items()):
            trained_at = registry.trained_at(name, number)
            last = datetime.fromisoformat(tag) if tag else trained_at  # of before there was the tag: perhaps
            if found.first_at <= last:
                models.append(TrainedModel(name, number, trained_at, number == serving))
    return models


def show(forgotten: Forgotten, program: str, console: Console) -> None:
    """Print what was removed where, which models knew the users, and where the receipts are."""
    if not forgotten.receipts:
        console.print("nothing is unfinished, and nobody was named")
    for file, receipt in forgotten.receipts.items():
        console.print()
        one = len(receipt.users) == 1
        console.print(f"{len(receipt.users):,} user{'' if one else 's'} forgotten", style="bold underline")
        table = Table(box=None, padding=(0, 1), show_edge=False)
        table.add_column("where", style="bold")
        table.add_column("removed", justify="right")
        table.add_column("")
        for name, count in receipt.rows.items():
            table.add_row(name, f"{count:,}", "rows")
        table.add_row("rejected", f"{receipt.texts:,}", "texts of rows")
        for name, count in receipt.memberships.items():
            state = f"segments; removed in {receipt.places[name]:,} places" if name in receipt.places else "segments"
            failure = receipt.failures.get(name)
            table.add_row(name, f"{count:,}", f"[yellow]not removed yet: {failure}" if failure else state)
        for name in receipt.unconfigured:
            table.add_row(name, "", "[yellow]not configured any more: what it holds stays there")
        console.print(table)
        console.print()
        _show_models(receipt, program, console)
        console.print(f"Searched: {', '.join(receipt.searched)}, and what waits to be sent there.")
        console.print("Not searched:")
        for store in receipt.not_searched:
            console.print(Padding(store, (0, 0, 0, 2)))
        console.print()
        console.print(f"Receipt: {file}", soft_wrap=True, style="green" if receipt.completed_at else "yellow")
        if not receipt.completed_at:
            console.print(f"Not complete: run `{program} forget` again when the destinations are there", style="yellow")


def _show_models(receipt: Receipt, program: str, console: Console) -> None:
    if not receipt.models:
        console.print("No model was trained on them.")
        return
    console.print("Trained on them", style="bold underline")
    table = Table(box=None, padding=(0, 1), show_edge=False)
    for heading in ("model", "version", "trained at", ""):
        table.add_column(heading)
    for one in receipt.models:
        table.add_row(one.name, f"{one.version}", f"{one.trained_at:%Y-%m-%d}", "serves" if one.serving else "")
    console.print(table)
    when = (
        f"at {receipt.next_training:%Y-%m-%d %H:%M} UTC" if receipt.next_training else f"at the next `{program} train`"
    )
    console.print(f"New versions are trained {when}, without them; one serves until a newer one is promoted.")
    console.print()

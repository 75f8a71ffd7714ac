"""`habitus upgrade`: tables of an earlier release become those of this one; no event is lost, and no file read."""

import logging
from dataclasses import dataclass

from rich.console import Console

from features.lake import WAIT_S
from features.table import ContractError
from features.upgrades import Upgrade, find_upgrades, upgrade
from flows.configuration import Configuration, ConfigurationError
from flows.turns import turn

logger = logging.getLogger("habitus")


@dataclass(frozen=True)
class Upgraded:
    """List what was done, or, in a dry run, what would be."""

    upgrades: list[Upgrade]
    dry_run: bool


def upgrade_lake(configuration: Configuration, dry_run: bool) -> Upgraded:
    """Bring every table of the lake to the contract of this release, one after the other.

    If this breaks off, a table is upgraded or as it was, and another run does the rest. Raises ConfigurationError where
    a table is of a later release, LockedError where another works on the lake for too long, and LakeInUseError where
    one has it open.
    """
    if not configuration.lake.is_dir():
        return Upgraded([], dry_run)
    try:
        if dry_run:
            with configuration.open_any_lake("duckdb") as lake:
                return Upgraded(find_upgrades(lake), dry_run)
        with turn(configuration, "upgrade"), configuration.open_any_lake("duckdb") as lake, lake.alone(WAIT_S):
            found = find_upgrades(lake)
            for one in found:
                logger.debug("upgrading %s", one.table)
                upgrade(lake, one, configuration.events, configuration.time_zone)
                logger.info("upgrade: %s", in_words(one))
            return Upgraded(found, dry_run)
    except ContractError as error:
        raise ConfigurationError(str(error)) from error


def in_words(one: Upgrade) -> str:
    """Say what becomes of a table."""
    return f"{one.table} from contract {one.before} to {one.after}, {one.rows:,} row{'' if one.rows == 1 else 's'}"


def show(upgraded: Upgraded, console: Console) -> None:
    """Print what was or would be done."""
    if not upgraded.upgrades:
        console.print("nothing to upgrade: all tables are of this release")
    elif upgraded.dry_run:
        for one in upgraded.upgrades:
            console.print(f"would upgrade {in_words(one)}")

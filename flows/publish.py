"""Publish: assignments become a version, which goes to each destination that may have it."""

import hashlib
import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import ibis.expr.types as ir
from prefect import flow, task

from features.attributes import ATTRIBUTES, contacts
from features.events import EVENTS
from features.lake import Lake
from features.table import ContractError
from flows.causes import would_be
from flows.configuration import LOCAL, Configuration, ConfigurationError, load
from flows.credentials import connect_all
from flows.forget import finish_all
from flows.identity import tells_personal
from flows.instant import name_run, resolve_as_of
from flows.report import tell, write_report
from flows.train import model_name
from flows.world import TOUCHES_THE_WORLD, DeliveryError, discreet
from models.names import marks
from models.registry import Registry
from publish import versions
from publish.assignments import assignments_table
from publish.consents import consents, unanswered
from publish.destination import Delivery
from publish.destinations import drop_unconfigured
from publish.lock import WAIT_S, publishing_lock
from publish.release import Candidate, Outcome, Policy, deliver
from publish.release import publish as release

logger = logging.getLogger("habitus")


@dataclass(frozen=True)
class Published:
    """Say what the present version is, how users changed, where it went, and what is held and how to release it.

    `changes` count users by destination, change and reason; `abandoned` memberships at destinations that are not
    configured any more, where nobody removes them.
    """

    version: int
    as_of: datetime
    latest: Path
    users: int
    changes: list[dict[str, Any]]
    held: str | None
    findings: list[str]
    release: str | None
    deliveries: list[Delivery]
    abandoned: Mapping[str, int]


@flow(flow_run_name=name_run)
def publish(config: str, as_of: datetime | None = None, label: str | None = None) -> Published:
    """Publish the assignments at `as_of`; with a label, those that the brake held under it.

    Raises DeliveryError at the end, where a destination did not take them.
    """
    logger.debug("publishing")
    published = publish_version(config, as_of, label)
    logger.info("publish: version %s, as of %s", published.version, f"{published.as_of:%Y-%m-%d %H:%M}")
    for delivery in published.deliveries:
        logger.info("  %s: %s", delivery.destination, _in_words(delivery))
    if published.held:
        logger.warning("  held: %s, and not released: %s", published.held, "; ".join(published.findings))
        logger.warning("  if that is right: %s", published.release)
    for name, count in published.abandoned.items():
        logger.warning("  %s is not configured any more: %s memberships stay there", name, f"{count:,}")
    _report(config)
    failed = [delivery for delivery in published.deliveries if delivery.state == "failed"]
    if failed:
        raise DeliveryError("; ".join(f"{delivery.destination}: {delivery.note}" for delivery in failed))
    return published


def _report(config: str) -> None:
    """Write the report of the present version. That it could not be written changes nothing of what was published."""
    try:
        tell(write_report(config))
    except Exception as error:
        logger.debug("report", exc_info=True)
        logger.warning("  the report was not written: %s; `habitus report` tries again", " ".join(str(error).split()))


def _in_words(delivery: Delivery) -> str:
    parts = [delivery.state, f"{delivery.count:,} {delivery.counted}", delivery.where, delivery.note]
    return " · ".join(part for part in parts if part)


@task(**TOUCHES_THE_WORLD)
@discreet
def publish_version(config: str, as_of: datetime | None, label: str | None) -> Published:
    """Make a version of assignments the present one, or hold it; take the present one to all destinations."""
    configuration = load(config)
    destinations = connect_all(configuration)
    with (
        Lake(configuration.lake, configuration.engine.memory_limit_bytes) as lake,
        publishing_lock(configuration.lake, WAIT_S),
    ):
        drop_unconfigured(lake.folder, destinations)
        for receipt in finish_all(lake, destinations, datetime.now(UTC)).receipts.values():
            if not receipt.completed_at:
                logger.warning("  users of receipt %s are not erased everywhere yet", receipt.receipt)
        if label is not None:
            as_of = _instant_of(lake, label)
        as_of = resolve_as_of(as_of, configuration, lake)
        candidate = _candidate(lake, configuration, as_of)
        versions.hide_names(lake, marks(configuration.personal))
        if label is not None and versions.label_of(as_of, candidate.content) != label:
            raise ConfigurationError(f"{label}: users were scored again since: run `habitus publish` first")
        outcome = release(
            lake, candidate, _policy(lake, configuration), partial(would_be, lake, configuration, as_of), label
        )
        assert outcome.version is not None
        known = contacts(lake.read(ATTRIBUTES))
        settings = configuration.all_destinations
        deliveries = [*deliver(lake, outcome.version, destinations, settings, known)]
    return _sum_up(configuration, outcome, deliveries)


def _instant_of(lake: Lake, label: str) -> datetime:
    held = {one.label: one.as_of for one in versions.read_held(lake)}
    if label not in held:
        known = f"held are {', '.join(held)}" if held else "nothing is held"
        raise ConfigurationError(f"{label}: no such version is held; {known}")
    return held[label]


def _candidate(lake: Lake, configuration: Configuration, as_of: datetime) -> Candidate:
    """Read the assignments at an instant, and say what made them."""
    table = assignments_table(configuration.labels.named)
    asked = f"{as_of:%Y-%m-%dT%H:%M:%SZ}"
    try:
        assignments = lake.read(table, only=[as_of])
    except ContractError as error:
        raise ConfigurationError(f"{error}: run `habitus score {configuration.file}` first") from error
    if as_of not in lake.partitions(table):
        raise ConfigurationError(f"no assignments at {asked}: run `habitus score {configuration.file}` first")
    kinds = ["segments", *configuration.labels.named]
    found = assignments.agg(
        **{f"{kind}_version": assignments[f"{kind}_version"].max() for kind in kinds},
        **{f"{kind}_known": assignments[f"{kind}_probability"].count() for kind in kinds[1:]},
        **{f"{kind}_ranked": assignments[f"{kind}_percentile"].count() for kind in kinds[1:]},
    )
    [row] = found.to_pyarrow().to_pylist()
    models = {kind: row[f"{kind}_version"] for kind in kinds}
    withheld = [kind for kind in kinds[1:] if row[f"{kind}_ranked"] and not row[f"{kind}_known"]]
    discovered = assignments.filter(assignments.segment_id.notnull()).select("segment_id", "segment_name").distinct()
    names = {
        one["segment_id"]: one["segment_name"] for one in discovered.order_by("segment_id").to_pyarrow().to_pylist()
    }
    if tells_personal(configuration, model_name(configuration, "segments"), models["segments"], names.values()):
        raise ConfigurationError(
            f"segments at {asked} are named by what is personal: run `habitus score {configuration.file}` first"
        )
    manifest = {
        "source": configuration.name,
        "labels": list(configuration.labels.named),
        "models": models,
        "configuration": _hash(configuration),
        "withheld": {label: _why_withheld(configuration, label, models[label]) for label in withheld},
        "segments": names,
        "rules": {
            rule.name: {"title": rule.title, "sentence": rule.sentence, "condition": rule.condition}
            for rule in configuration.rules.rules
        },
    }
    return Candidate(assignments, as_of, lake.content(table, only=[as_of]), manifest)


def _hash(configuration: Configuration) -> str:
    """Return a hash of all that a configuration says, wherever it is."""
    return hashlib.sha256(configuration.model_dump_json().encode()).hexdigest()


def _why_withheld(configuration: Configuration, label: str, number: int) -> str:
    """Return what a label's model says of why users have ranks and no probabilities."""
    version = Registry(configuration.mlruns).load(model_name(configuration, label), number)
    return str(version.metadata.get("withheld") or "not said") if version else "not said"


def _policy(lake: Lake, configuration: Configuration) -> Policy:
    """Say what may leave.

    Raises ConfigurationError where nobody has answered what a missing answer would be a yes to.
    """
    events, attributes = lake.read(EVENTS), lake.read(ATTRIBUTES)
    for purpose in unanswered(events, attributes, configuration.purposes):
        if configuration.purposes[purpose].missing == "yes":
            raise ConfigurationError(
                f'purposes.{purpose}: nobody has said yes or no, and missing = "yes" would take that for a yes of all: '
                f"correct it, or run `habitus ingest {configuration.file}` where it is new"
            )
        logger.warning("  purposes.%s: nobody has said yes or no, so nobody consents", purpose)

    def consents_of(users: ir.Table) -> ir.Table:
        return consents(events, attributes, configuration.purposes, users)

    brake, personal = configuration.publish.brake, configuration.personal
    return Policy(configuration.all_destinations, consents_of, brake, configuration.name, personal)


def _sum_up(configuration: Configuration, outcome: Outcome, deliveries: list[Delivery]) -> Published:
    assert outcome.version is not None
    [local] = [delivery for delivery in deliveries if delivery.destination == LOCAL]
    held = outcome.held
    command = f"habitus release {shlex.quote(str(configuration.file))} {held.label}" if held else None
    return Published(
        outcome.version.version,
        outcome.version.as_of,
        configuration.published / "latest",
        local.count,
        [{str(name): value for name, value in row.items()} for row in outcome.changes.to_dict("records")],
        held.label if held else None,
        held.findings if held else [],
        command,
        deliveries,
        outcome.abandoned,
    )

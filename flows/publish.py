"""Publish: assignments become a version, which goes to each destination that may have it."""

import hashlib
import logging
import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import ibis.expr.types as ir
from prefect import task

from features.as_of import find_lag
from features.attributes import ATTRIBUTES, contacts
from features.events import EVENTS
from features.lake import Lake
from features.table import ContractError
from features.zones import write_instant
from flows.causes import would_be
from flows.configuration import LOCAL, Configuration, ConfigurationError, load
from flows.credentials import connect_all
from flows.forget import finish_all
from flows.identity import tells_personal
from flows.instant import decide, tell
from flows.report import link, write_report
from flows.score import find_lines
from flows.snapshot import table_of
from flows.stage import HeldError, read_as_of, stage
from flows.train import model_name
from flows.turns import publishing, turn
from flows.world import TOUCHES_THE_WORLD, DeliveryError, discreet
from models import rfm
from models.names import marks
from models.registry import PROMOTIONS, Registry
from publish import versions
from publish.assignments import assignments_table
from publish.brake import LEVELS
from publish.consents import consents, unanswered
from publish.destination import Delivery, Destination, Release
from publish.destinations import drop_unconfigured
from publish.lock import DELIVERING_WAIT_S
from publish.release import Candidate, Outcome, Policy, deliver, queue, release_for, send
from publish.release import publish as release

logger = logging.getLogger("habitus")


@dataclass(frozen=True)
class Published:
    """Say what the present version is, how users changed, where it went, and what is held and how to release it.

    Nothing is present before the first release: then `version` and `as_of` are None, and nothing went anywhere.
    `changes` count memberships (`users`: a user is in several segments) by destination, change and reason; `abandoned`
    those at destinations that are not configured any more, where nobody removes them.
    """

    version: int | None
    as_of: datetime | None
    time_zone: str
    latest: Path
    users: int
    changes: list[dict[str, Any]]
    held: str | None
    findings: list[str]
    release: str | None
    deliveries: list[Delivery]
    abandoned: Mapping[str, int]

    @property
    def why_held(self) -> str:
        """Say what is held, what the brake found, and which command releases it all the same."""
        return f"{self.held} is not released: {'; '.join(self.findings)}; if that is right: {self.release}"


@stage(takes_turns=False)
def publish(
    config: str, as_of: datetime | str | None = None, label: str | None = None, due: datetime | None = None
) -> Published:
    """Publish the assignments at `as_of`; with a label, those that the brake held under it.

    They are held where the newest event is much older than `due`, the instant at which events were to be new: `as_of`
    if it is left out. Raises at the end DeliveryError, where a destination did not take them, and HeldError, where
    they are held.
    """
    logger.debug("publishing")
    published = publish_version(config, read_as_of(config, as_of), label, due)
    if published.as_of is None:
        logger.info("publish: nothing yet")
    else:
        said = write_instant(published.as_of, published.time_zone)
        logger.info("publish: version %s, as of %s", published.version, said)
    for delivery in published.deliveries:
        logger.info("  %s: %s", delivery.destination, _in_words(delivery))
    if published.held:
        logger.warning("  held: %s", published.why_held)
    for name, count in published.abandoned.items():
        logger.warning("  %s is not configured any more: %s memberships stay there", name, f"{count:,}")
    if published.version is not None:
        _report(config)
    failed = [delivery for delivery in published.deliveries if delivery.state == "failed"]
    if failed:
        raise DeliveryError("; ".join(f"{delivery.destination}: {delivery.note}" for delivery in failed))
    if published.held:
        raise HeldError(published.why_held, published)
    return published


def _report(config: str) -> None:
    """Write the report of the present version. That it could not be written changes nothing of what was published."""
    try:
        link(config, write_report(config))
    except Exception as error:
        logger.debug("report", exc_info=True)
        logger.warning("  the report was not written: %s; `habitus report` tries again", " ".join(str(error).split()))


def _in_words(delivery: Delivery) -> str:
    parts = [delivery.state, f"{delivery.count:,} {delivery.counted}", delivery.where, delivery.note]
    return " · ".join(part for part in parts if part)


@task(**TOUCHES_THE_WORLD)
@discreet
def publish_version(config: str, as_of: datetime | None, label: str | None, due: datetime | None = None) -> Published:
    """Make a version of assignments the present one, or hold it; take the present one to all destinations."""
    configuration = load(config)
    destinations = connect_all(configuration)
    with ExitStack() as opened:
        with turn(configuration, "publish"), publishing(configuration, "publish"):
            lake = opened.enter_context(configuration.open_lake("duckdb"))
            outcome, releases = _release(lake, configuration, destinations, as_of, label, due)
            queued = queue(releases, destinations)
        delivered = deliver(lake, releases, destinations, DELIVERING_WAIT_S)
    # Whom others keep waiting keeps nobody else waiting: nothing is open or locked any more but the destination.
    told = delivered | send(queued, destinations)
    return _sum_up(configuration, outcome, [told[name] for name in releases])


def _release(
    lake: Lake,
    configuration: Configuration,
    destinations: Mapping[str, Destination],
    as_of: datetime | None,
    label: str | None,
    due: datetime | None,
) -> tuple[Outcome, dict[str, Release]]:
    """Make a version the present one, or hold it; return that, and what each destination may have of the present."""
    drop_unconfigured(lake.folder, destinations)
    for receipt in finish_all(lake, destinations, datetime.now(UTC)).receipts.values():
        if not receipt.completed_at:
            logger.warning("  users of receipt %s are not erased everywhere yet", receipt.receipt)
    if label is not None:
        as_of = _instant_of(lake, label)
    decision = decide(as_of, configuration, lake)
    if as_of is None:
        tell(decision, configuration.time_zone)
    as_of = decision.as_of
    lag = find_lag(decision.newest_at, due or decision.due, configuration.publish.max_lag_days, configuration.time_zone)
    candidate = _candidate(lake, configuration, as_of)
    versions.hide_names(lake, marks(configuration.personal))
    if label is not None and versions.label_of(as_of, candidate.content) != label:
        raise ConfigurationError(f"{label}: users were scored again since: run `habitus publish` first")
    outcome = release(
        lake,
        candidate,
        _policy(lake, configuration),
        partial(would_be, lake, configuration, as_of),
        label,
        [lag] if lag else [],
    )
    if outcome.version is None:
        return outcome, {}
    known, settings = contacts(lake.read(ATTRIBUTES)), configuration.all_destinations
    return outcome, {name: release_for(lake, outcome.version, name, settings[name], known) for name in destinations}


def _instant_of(lake: Lake, label: str) -> datetime:
    held = {one.label: one.as_of for one in versions.read_held(lake)}
    if label not in held:
        known = f"held are {', '.join(held)}" if held else "nothing is held"
        raise ConfigurationError(f"{label}: no such version is held; {known}")
    return held[label]


def _candidate(lake: Lake, configuration: Configuration, as_of: datetime) -> Candidate:
    """Read the assignments at an instant, and say what made them."""
    table = assignments_table(configuration.labels.named)
    asked = write_instant(as_of, configuration.time_zone)
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
    _check_models(configuration, models, asked)
    withheld = [kind for kind in kinds[1:] if row[f"{kind}_ranked"] and not row[f"{kind}_known"]]
    discovered = assignments.filter(assignments.segment_id.notnull()).select("segment_id", "segment_name").distinct()
    names = {
        one["segment_id"]: one["segment_name"] for one in discovered.order_by("segment_id").to_pyarrow().to_pylist()
    }
    if tells_personal(configuration, model_name(configuration, "segments"), models["segments"], names.values()):
        raise ConfigurationError(
            f"segments at {asked} are named by what is personal: run `habitus score {configuration.file}` first"
        )
    definitions = configuration.snapshot_definitions
    lines = find_lines(Registry(configuration.mlruns), configuration, as_of)
    known = {*table_of(configuration).schema, *(rfm.WORDS if lines else ())}
    manifest = {
        "source": configuration.name,
        "labels": list(configuration.labels.named),
        "models": models,
        "configuration": _hash(configuration),
        "withheld": {label: _why_withheld(configuration, label, models[label]) for label in withheld},
        "segments": names,
        "rules": {
            rule.name: {part: getattr(rule, part) for part in ("title", "sentence", "condition", "needs")}
            for rule in configuration.rules.rules
        },
        "rules_off": [rule.name for rule in configuration.rules.rules if {*rule.features} - known],
        "levels": _levels(lake, configuration, as_of),
        "definitions": [definitions["gap"].total_seconds(), definitions["time_zone"], definitions["day_level"]],
        "rfm": lines.to_dict() if lines else None,
    }
    return Candidate(assignments, as_of, lake.content(table, only=[as_of]), manifest)


def _check_models(configuration: Configuration, models: Mapping[str, int | None], asked: str) -> None:
    """Raise ConfigurationError where assignments are by a version that the store of models does not know."""
    made = {model_name(configuration, kind): number for kind, number in models.items() if number is not None}
    registry = Registry(configuration.mlruns) if made else None
    for name, number in made.items():
        if registry is not None and number not in registry.tags(name, PROMOTIONS):
            raise ConfigurationError(
                f"assignments at {asked} are by {name} version {number}, which {configuration.mlruns} does not know: "
                "it and the lake are of different moments; put back both as they were at one, or run "
                f"`habitus score {configuration.file}` first"
            )


def _levels(lake: Lake, configuration: Configuration, as_of: datetime) -> dict[str, float]:
    """Return medians of features at an instant, over the users who have any; none where these are few."""
    table = table_of(configuration)
    if as_of not in lake.partitions(table):
        return {}
    try:
        snapshot = lake.read(table, only=[as_of])
    except ContractError:  # of other windows than the configuration's: there is no comparing
        return {}
    medians = {name: snapshot[name].quantile(0.5, where=snapshot[name] > 0) for name in LEVELS}
    counts = {f"{name}_users": (snapshot[name] > 0).sum() for name in LEVELS}
    [found] = snapshot.agg(**medians, **counts).to_pyarrow().to_pylist()
    least = max(configuration.publish.brake.audience_min, 1)
    return {name: found[name] for name in LEVELS if (found[f"{name}_users"] or 0) >= least}


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
    return Policy(
        configuration.all_destinations, consents_of, brake, configuration.name, personal, configuration.time_zone
    )


def _sum_up(configuration: Configuration, outcome: Outcome, deliveries: list[Delivery]) -> Published:
    present, held = outcome.version, outcome.held
    command = f"habitus release {shlex.quote(str(configuration.file))} {held.label}" if held else None
    return Published(
        present.version if present else None,
        present.as_of if present else None,
        configuration.time_zone,
        configuration.published / "latest",
        sum(delivery.count for delivery in deliveries if delivery.destination == LOCAL),
        [{str(name): value for name, value in row.items()} for row in outcome.changes.to_dict("records")],
        held.label if held else None,
        held.findings if held else [],
        command,
        deliveries,
        outcome.abandoned,
    )

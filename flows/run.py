"""Run: the main job, from raw events to published segments."""

import logging
from dataclasses import dataclass
from datetime import datetime

from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from features.as_of import Decision
from features.increments import Sessionized
from features.zones import write_instant
from flows.configuration import Configuration, load
from flows.ingest import Ingested, ingest
from flows.instant import decide, tell
from flows.publish import Published, publish
from flows.score import Scored, score
from flows.sessions import sessions
from flows.snapshot import Snapshots, snapshot
from flows.stage import HeldError, artifact_key, read_as_of, stage
from flows.train import Trained, train
from flows.turns import turn
from publish import versions
from publish.brake import find_step_back

logger = logging.getLogger("habitus")


@dataclass(frozen=True)
class Result:
    """Hold what each stage found."""

    name: str
    as_of: datetime
    decision: Decision
    ingested: Ingested
    sessionized: Sessionized
    snapshots: Snapshots
    trained: dict[str, Trained]
    scored: Scored
    published: Published


@stage(takes_turns=False)
def run(config: str, as_of: datetime | str | None = None) -> Result:
    """Do everything: ingest, sessions, snapshot, train, score, publish."""
    return _run(config, as_of, training=True)


@stage(takes_turns=False)
def refresh(config: str, as_of: datetime | str | None = None) -> Result:
    """Do everything but training: new events, new features, new scores of the models that serve."""
    return _run(config, as_of, training=False)


def _run(config: str, as_of: datetime | str | None, training: bool) -> Result:
    configuration = load(config)
    given = read_as_of(config, as_of)
    if given is not None:
        _warn_of_a_step_back(configuration, given)
    # What is published takes a turn of its own, which ends before receivers are waited for.
    with turn(configuration, "run" if training else "refresh"):
        ingested = ingest(config)
        with configuration.open_lake() as lake:
            decision = decide(given, configuration, lake)
        if given is None:
            tell(decision, configuration.time_zone)
            _warn_of_a_step_back(configuration, decision.as_of)
        as_of = decision.as_of
        said = write_instant(as_of, configuration.time_zone)
        _rename(f"{flow_run.flow_name} {configuration.name} as of {said}")
        sessionized = sessions(config)
        snapshots = snapshot(config, as_of, training)
        trained = train(config, as_of) if training else {}
        scored = score(config, as_of)
    published = _publish(config, as_of, decision.due)
    result = Result(configuration.name, as_of, decision, ingested, sessionized, snapshots, trained, scored, published)
    _leave_artifact(configuration, result, said)
    if result.published.held:
        raise HeldError(result.published.why_held, result)
    return result


def _warn_of_a_step_back(configuration: Configuration, as_of: datetime) -> None:
    """Say before the work, not after it, that what comes of it will be held."""
    if not configuration.lake.is_dir():
        return
    with configuration.open_lake("duckdb") as lake:
        released = versions.present(lake)
    back = released and find_step_back(as_of, released.as_of, configuration.time_zone)
    if back:
        logger.warning("  what comes of this run will be held: %s; stop it with Ctrl-C if that is not meant", back)


def _publish(config: str, as_of: datetime, due: datetime) -> Published:
    """Publish; of a version that the brake holds, return what `publish` says of it."""
    try:
        return publish(config, as_of, due=due)
    except HeldError as held:
        published: Published = held.result
        return published


def _rename(name: str) -> None:
    """Give this run a name that says its instant, which only the data told."""
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, name=name)


def _leave_artifact(configuration: Configuration, result: Result, as_of: str) -> None:
    create_table_artifact(
        key=artifact_key(configuration, "segments"),
        table=[
            {
                "segment": segment.name,
                "users": segment.users,
                "share": f"{segment.share:.1%}",
                "typical": ", ".join(segment.typical[:3]),
            }
            for segment in result.scored.segments
        ],
        description=f"{result.name} as of {as_of}: {result.published.version or 'nothing published yet'}",
    )

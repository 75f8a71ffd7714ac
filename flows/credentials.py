"""Credentials: texts that only the environment or a Prefect block has, never a file; and what they open."""

import os

import pyarrow as pa
from prefect.blocks.system import Secret

from flows.configuration import LOCAL, Configuration, ConfigurationError
from publish.destination import Credential, Destination, DestinationError, DestinationSettings
from publish.destinations import connect
from publish.destinations.folders import FolderSettings
from publish.report.content import Report
from publish.report.reports import FOLDER, Reports, WithReports
from publish.report.settings import ReportSettings


def connect_all(configuration: Configuration) -> dict[str, Destination]:
    """Return all destinations, the local folder first.

    Raises ConfigurationError for a credential that is missing, or cannot be one.
    """
    try:
        destinations = {
            name: connect(name, settings, resolve(name, settings), configuration.folder, configuration.lake)
            for name, settings in configuration.all_destinations.items()
        }
    except DestinationError as error:
        raise ConfigurationError(f"destinations.{error}") from error
    return destinations | {LOCAL: WithReports(destinations[LOCAL], connect_reports(configuration))}


def connect_reports(configuration: Configuration) -> Reports:
    """Return the reports of versions, which are in a folder within that of published versions."""
    settings = configuration.all_destinations[LOCAL]
    assert isinstance(settings, FolderSettings)
    inside = settings.model_copy(update={"folder": f"{settings.folder.rstrip('/')}/{FOLDER}"})
    folder = inside.open(resolve(LOCAL, settings), configuration.folder, configuration.lake)
    return Reports(folder, configuration.report, _page)


def _page(report: Report, users: pa.Table | None, settings: ReportSettings) -> str:
    from publish.report.page import to_html  # which takes a second to import, and few commands need

    return to_html(report, users, settings)


def resolve(name: str, settings: DestinationSettings) -> dict[str, str]:
    """Return the credentials of a destination, by field.

    Raises ConfigurationError that names the variable or block that is missing.
    """
    given = {field: getattr(settings, field) for field in type(settings).model_fields}
    return {
        field: _resolve(f"destinations.{name}.{field}", credential)
        for field, credential in given.items()
        if isinstance(credential, Credential)
    }


def _resolve(key: str, credential: Credential) -> str:
    if credential.env is not None:
        value = os.environ.get(credential.env)
        if not value:
            raise ConfigurationError(f"{key}: the environment variable {credential.env} is not set")
        return value
    assert credential.block is not None
    try:
        return str(Secret.load(credential.block, _sync=True).get())  # type: ignore[union-attr, call-arg]
    except ValueError as error:
        raise ConfigurationError(
            f"{key}: Prefect has no Secret block named {credential.block}: make one, or name it right"
        ) from error

"""Where published assignments go, one module each."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, get_args

from pydantic import Field

from publish.destination import Destination, DestinationSettings
from publish.destinations.ad_audiences import GoogleCustomerMatchSettings, MetaCustomAudienceSettings
from publish.destinations.files import FilesSettings
from publish.destinations.segment_calls import SegmentSettings
from publish.destinations.sql import SqlSettings
from publish.destinations.webhook import WebhookSettings
from publish.outbox import Outbox

Settings = (
    FilesSettings
    | SqlSettings
    | WebhookSettings
    | SegmentSettings
    | GoogleCustomerMatchSettings
    | MetaCustomAudienceSettings
)
AnySettings = Annotated[Settings, Field(discriminator="kind")]
"""[destinations.NAME] of the configuration: `kind` says which."""
KINDS: dict[str, type[DestinationSettings]] = {
    get_args(settings.model_fields["kind"].annotation)[0]: settings for settings in get_args(Settings)
}
"""The settings by kind."""
OUTBOX = "outbox.db"
"""What waits to be sent, beside the lake's tables."""


def connect(name: str, settings: AnySettings, credentials: Mapping[str, str], folder: Path, lake: Path) -> Destination:
    """Return a destination; nothing is read or sent yet.

    `credentials` are by field of the settings, relative paths relative to `folder`, and what waits to be sent is beside
    the lake's tables. Raises DestinationError for a credential that cannot be one.
    """
    match settings:
        case FilesSettings() | GoogleCustomerMatchSettings() | MetaCustomAudienceSettings():
            return settings.connect(name, credentials, folder, lake)
        case SqlSettings():
            return settings.connect(name, credentials, folder)
        case WebhookSettings() | SegmentSettings():
            return settings.connect(name, credentials, folder, Outbox(lake / OUTBOX))


def open_outbox(lake: Path) -> Outbox | None:
    """Return what waits to be sent, or was; None where nothing ever was."""
    return Outbox(lake / OUTBOX) if (lake / OUTBOX).exists() else None


def drop_unconfigured(lake: Path, destinations: Collection[str]) -> int:
    """Drop what was not sent to other destinations than these, which nobody will ask for; return how many messages."""
    outbox = open_outbox(lake)
    if outbox is None:
        return 0
    with outbox:
        return outbox.keep_only(destinations)

"""CONSENTS: whether each user agrees to each purpose, and which purposes a destination has to have agreement to."""

import difflib
from collections.abc import Collection, Mapping
from typing import Annotated, Literal, Self

import ibis
import ibis.expr.types as ir
from pydantic import BeforeValidator, Field, model_validator

from features.sources import CONSENT, Settings
from features.table import Table
from publish.destination import NAME, DestinationSettings

CONSENTS = Table(
    name="consents",
    schema=ibis.schema({"user_id": "!string", "purpose": "!string", "granted": "!boolean"}),
    key=("user_id", "purpose"),
)
YES = ("yes", "true", "1")
Text = Annotated[str, Field(min_length=1)]


class PurposeSettings(Settings):
    """Say where users say whether they agree to a purpose: in a column of the users' file, or by events.

    Of an `attribute`, the values `granted` (YES unless given) are a yes, trimmed and in upper or lower case, and all
    others a no. Of
    events, by their names after mapping, the latest counts: one of those that it is `granted_by` or `withdrawn_by`. A
    user who has said nothing counts as `missing`.
    """

    attribute: Text | None = None
    granted: list[Text] | None = Field(default=None, min_length=1)
    granted_by: list[Text] = Field(default=[])
    withdrawn_by: list[Text] = Field(default=[])
    missing: Literal["no", "yes"] = "no"

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        has_events = bool(self.granted_by or self.withdrawn_by)
        if has_events == (self.attribute is not None):
            both = "not both" if has_events else "neither is given"
            raise ValueError(
                f'give either attribute = "column of the users\' file" or granted_by = ["event"] and '
                f'withdrawn_by = ["event"]; {both}'
            )
        if has_events and self.granted is not None:
            raise ValueError("granted is of an attribute; events are told apart by granted_by and withdrawn_by")
        if has_events and not self.granted_by and self.missing == "no":
            raise ValueError('nobody could ever agree: give granted_by, or missing = "yes"')
        if twice := sorted({*self.granted_by} & {*self.withdrawn_by}):
            raise ValueError(f"{twice[0]!r} is in granted_by and in withdrawn_by; an event says one of them")
        return self


def _check_names(purposes: object) -> object:
    for name, given in purposes.items() if isinstance(purposes, dict) else ():
        if not isinstance(given, dict | PurposeSettings):
            raise ValueError(f"{name!r} is in no purpose's section: write it under [purposes.NAME]")
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a purpose: write small letters, digits and _, a letter first")
    return purposes


Purposes = Annotated[dict[str, PurposeSettings], BeforeValidator(_check_names)]
"""[purposes.NAME] of the configuration."""


def consents(
    events: ir.Table, attributes: ir.Table, purposes: Mapping[str, PurposeSettings], users: ir.Table
) -> ir.Table:
    """Return CONSENTS of the users (user_id) to every purpose, by EVENTS and ATTRIBUTES; without purposes, no row.

    Of a user's events the latest counts; where there is a yes and a no at that instant, the no. They are all events
    that are known, also those at or after as_of, unlike for features: a consent predicts nothing, it permits, and one
    that was withdrawn is so from now on, whatever instant is published.
    """
    people = users.select("user_id").distinct()
    rows = [CONSENTS.check(ibis.memtable([], schema=CONSENTS.schema))] if not purposes else []
    for name, settings in purposes.items():
        found = people.left_join(_said(events, attributes, settings), "user_id")
        granted = found.granted.fill_null(settings.missing == "yes")
        rows.append(CONSENTS.check(found.select("user_id", purpose=ibis.literal(name), granted=granted)))
    return ibis.union(*rows)


def unanswered(events: ir.Table, attributes: ir.Table, purposes: Mapping[str, PurposeSettings]) -> list[str]:
    """List the purposes that no user has said yes or no to, so that all count as `missing`.

    Nobody was asked, a name is misspelt, or the column was not read yet, which ingesting does.
    """
    return [
        name
        for name, settings in purposes.items()
        if not _said(events, attributes, settings).limit(1).count().to_pyarrow().as_py()
    ]


def check_purposes(destinations: Mapping[str, DestinationSettings], purposes: Collection[str]) -> None:
    """Raise ValueError where a destination names a purpose that there is not, or says nothing where there are some."""
    known = ", ".join(purposes)
    for name, settings in destinations.items():
        if settings.purposes is None and purposes:
            raise ValueError(
                f"destinations.{name}.purposes: is missing; list those of {known} that its users have to agree to, "
                "or write purposes = [] if it needs none"
            )
        for purpose in settings.purposes or ():
            if purpose not in purposes:
                near = difflib.get_close_matches(purpose, purposes, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {known}" if purposes else "there are none"
                raise ValueError(f"destinations.{name}.purposes: there is no [purposes.{purpose}]; {hint}")


def _said(events: ir.Table, attributes: ir.Table, settings: PurposeSettings) -> ir.Table:
    """Return user_id and granted of the users who said yes or no."""
    if settings.attribute is not None:
        granted = [text.strip().lower() for text in settings.granted or YES]
        said = attributes.filter(attributes.attribute == CONSENT + settings.attribute)
        return said.select("user_id", granted=said["value"].strip().lower().isin(granted))
    said = events.filter(events.event_name.isin([*settings.granted_by, *settings.withdrawn_by]))
    is_yes = said.event_name.isin(settings.granted_by)
    last = said.group_by("user_id").agg(
        yes_at=said.occurred_at.max(where=is_yes), no_at=said.occurred_at.max(where=~is_yes)
    )
    return last.select("user_id", granted=last.yes_at.notnull() & (last.no_at.isnull() | (last.yes_at > last.no_at)))

"""ATTRIBUTES: what is known about a user that is no event, such as an age band or a plan.

Beside those that are features, it holds contacts and what users say of consent, under names that are reserved.
"""

from collections.abc import Callable

import ibis
import ibis.expr.types as ir

from features.events import as_text
from features.sources import CONSENT, EMAIL, PHONE, RESERVED
from features.table import Table

ATTRIBUTES = Table(
    name="attributes",
    schema=ibis.schema({"user_id": "!string", "attribute": "!string", "value": "!string"}),
    key=("user_id", "attribute"),
)


class DuplicateUserError(Exception):
    """Say where a user is described twice, differently."""


def describe_users(users: ir.Table, attributes: list[str], places_of: Callable[[ir.Table], str]) -> ir.Table:
    """Turn one row per user, as `sources.read_users` gives it, into ATTRIBUTES; blank text is no value.

    Raises DuplicateUserError where a user has two values for one attribute, with where `places_of` says their rows are.
    """
    given = users.select(user_id=as_text(users.user_id), **{name: as_text(users[name]) for name in attributes})
    given = given.filter(given.user_id.notnull())
    long = given.pivot_longer(~ibis.selectors.cols("user_id"), names_to="attribute", values_to="value")
    long = long.filter(long.value.notnull()).distinct()
    twice = long.group_by(["user_id", "attribute"]).agg(values=long.count()).filter(lambda t: t["values"] > 1)
    for row in twice.order_by("user_id", "attribute").limit(1).to_pyarrow().to_pylist():
        theirs = users.filter(as_text(users.user_id) == row["user_id"], as_text(users[row["attribute"]]).notnull())
        name = row["attribute"].removeprefix(CONSENT).removeprefix(RESERVED)
        raise DuplicateUserError(f"{places_of(theirs)}: one user has {row['values']} values of {name}; give one")
    return ATTRIBUTES.check(long)


def contacts(attributes: ir.Table) -> ir.Table:
    """Return user_id, email and phone as they were given of the users who gave one; null where they did not."""
    given = attributes.filter(attributes.attribute.isin([EMAIL, PHONE]))
    return given.group_by("user_id").agg(
        email=given["value"].max(where=given.attribute == EMAIL),
        phone=given["value"].max(where=given.attribute == PHONE),
    )

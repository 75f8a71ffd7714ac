"""ATTRIBUTES: what is known about a user that is no event, such as an age band or a plan.

Beside those that are features, it holds contacts and what users say of consent, under names that are reserved.
"""

from collections.abc import Callable, Sequence

import ibis
import ibis.expr.types as ir

from features.sources import CONSENT, EMAIL, PHONE, RESERVED, SourceError, attribute_column
from features.table import Table
from features.values import as_text, is_inexact

ATTRIBUTES = Table(
    name="attributes",
    schema=ibis.schema({"user_id": "!string", "attribute": "!string", "value": "!string"}),
    key=("user_id", "attribute"),
)


class DuplicateUserError(Exception):
    """Say where a user is described twice, differently."""


def describe_users(parts: Sequence[ir.Table], attributes: list[str], places_of: Callable[[ir.Table], str]) -> ir.Table:
    """Turn one row per user, as `sources.read_users` gives it, into ATTRIBUTES; blank text is no value.

    Raises DuplicateUserError where a user has two values for one attribute, with where `places_of` says their rows are,
    SourceError for ids that are not exact.
    """
    for users in parts:
        count = users.filter(is_inexact(users.user_id)).count().to_pyarrow().as_py()
        if count:
            are = "id is a number" if count == 1 else "ids are numbers"
            raise SourceError(f"users.user_id: {count:,} {are} too large to be exact; write ids as text")
    given = ibis.union(
        *(
            users.select(
                user_id=as_text(users.user_id), **{name: as_text(users[attribute_column(name)]) for name in attributes}
            )
            for users in parts
        )
    )
    given = given.filter(given.user_id.notnull())
    long = given.pivot_longer(~ibis.selectors.cols("user_id"), names_to="attribute", values_to="value")
    long = long.filter(long.value.notnull()).distinct()
    twice = long.group_by(["user_id", "attribute"]).agg(values=long.count()).filter(lambda t: t["values"] > 1)
    for row in twice.order_by("user_id", "attribute").limit(1).to_pyarrow().to_pylist():
        places = []
        for users in parts:
            is_theirs = as_text(users.user_id) == row["user_id"]
            places.append(
                places_of(users.filter(is_theirs, as_text(users[attribute_column(row["attribute"])]).notnull()))
            )
        name = row["attribute"].removeprefix(CONSENT).removeprefix(RESERVED)
        raise DuplicateUserError(
            f"{'; '.join(filter(None, places))}: one user has {row['values']} values of {name}; give one"
        )
    return ATTRIBUTES.check(long)


def contacts(attributes: ir.Table) -> ir.Table:
    """Return user_id, email and phone as they were given of the users who gave one; null where they did not."""
    given = attributes.filter(attributes.attribute.isin([EMAIL, PHONE]))
    return given.group_by("user_id").agg(
        email=given["value"].max(where=given.attribute == EMAIL),
        phone=given["value"].max(where=given.attribute == PHONE),
    )

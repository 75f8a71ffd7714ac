"""VERSIONS: what was published or held, and RELEASED: the assignments of the present version."""

from dataclasses import replace

import ibis

from features.table import TIME, Table
from publish.assignments import assignments_table

VERSIONS = Table(
    name="versions",
    schema=ibis.schema(
        {
            "version": "!int64",
            "as_of": TIME.copy(nullable=False),
            "content": "!string",
            "released": "!boolean",
            "manifest": "!string",
        }
    ),
    key=("version",),
)
"""A row for each version. `content` is the hash of its assignments, `manifest` JSON that destinations add files to."""


def released_table(labels: list[str]) -> Table:
    """Return the contract of RELEASED for these labels: ASSIGNMENTS of everyone in the present version, by user."""
    return replace(assignments_table(labels), name="released", key=("user_id",), partition=None)

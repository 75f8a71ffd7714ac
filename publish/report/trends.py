"""Sizes of segments over the versions."""

from collections.abc import Sequence
from datetime import UTC
from typing import Any

import numpy as np

from publish.report.content import TrendPoint
from publish.report.groups import Groups, hide_segments
from publish.report.metrics import shown_count, shown_share
from publish.report.suppression import is_small
from publish.versions import Version


def follow_sizes(
    version: Version, earlier: Sequence[Version], groups: Groups
) -> tuple[dict[str, list[TrendPoint]], list[TrendPoint]]:
    """Return each segment's size at this version and those before that say it, and that of all users."""
    versions = [one for one in (*earlier, version) if "sizes" in one.manifest]
    now: dict[str, Any] = {"users": groups.user_count, "segments": groups.sizes}
    trend: dict[str, list[TrendPoint]] = {name: [] for name in groups.ids}
    everyone: list[TrendPoint] = []
    for one in sorted(versions, key=lambda one: one.version):
        manifest = one.manifest
        sizes = now if one.version == version.version else manifest["sizes"]
        named = {name: sizes["segments"].get(name, 0) for name in manifest["rules"]}
        discovered = {name: sizes["segments"].get(name, 0) for name in manifest["segments"]}
        hidden = hide_segments(discovered, named, sizes["users"], groups.k)
        at: dict[str, Any] = {"version": one.version, "as_of": one.as_of.astimezone(UTC)}
        is_small_version = bool(is_small(np.array([sizes["users"]]), groups.k)[0])
        everyone.append(TrendPoint(users=shown_count(sizes["users"], is_small_version), share=None, **at))
        for name, size in {**discovered, **named}.items():
            if name in trend:
                is_hidden = name in hidden or is_small_version
                point = TrendPoint(
                    users=shown_count(size, is_hidden), share=shown_share(size, sizes["users"], is_hidden), **at
                )
                trend[name].append(point)
    return trend, everyone

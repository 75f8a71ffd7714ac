"""Candidates: clusters that were found, how they are judged, and which are chosen. The rule is in docs/segments.md."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from models.spaces import Space

Method = Literal["k-means", "mixture"]

SHARE_MIN = 0.02
STABILITY_MIN = 0.6
SEPARATION_MIN = 1.35  # noise of more than three features stays below 1.25
JACCARD_MIN = 0.5  # below it a cluster is dissolved (Hennig 2007)
TOLERANCE = 0.05  # of the best score: to so little more, fewer clusters are preferred
TELLING_FREE = 0.05  # of R²: what clusters count that tell nothing
TELLING_SHARE_MIN = 0.8  # of what the most telling candidate tells
BLIND_SHARE_MIN = 0.9  # the same of candidates by behaviour, which separation favours
MOVED_COST = 0.5  # of the score: what it costs to send all users to other segments
BROAD_SHARE = 0.6  # of a cluster of more users, or of one that is like all others, nothing can be said
BROAD_COST = 0.5


@dataclass(frozen=True)
class Candidate:
    """Tell of clusters that were found: how, how many, and how they were judged; `kept` are those that serve already.

    `silhouette` is the mean one (-1 to 1; Rousseeuw 1987), `separation` its ratio to that of as many clusters in one
    heap, a normal distribution with the same variances (after Liu et al. 2008), `stability` the mean adjusted Rand
    index between pairs of refits to bootstrap samples (Hubert and Arabie 1985), `jaccard` for each cluster the mean
    Jaccard similarity to its best match in refits (Hennig 2007), `smallest_share` that of the smallest cluster;
    `broad` says whether the largest has more than 60 % of the users, or is like all others, and does not tell what
    these do next.

    Found in the same way at an earlier instant, `steadiness` is the share of today's users whom both put into the same
    cluster, and `telling` the R² of what they did after that instant, on average over outcomes, as the clusters told it
    from before; `telling_low` is three standard errors less. `kept_share` is the share of users who keep the
    segment that they have by the model that serves. None: nothing was there to compare with.

    `refused` says why it was not eligible.
    """

    method: Method
    k: int
    kept: bool
    silhouette: float
    separation: float
    stability: float
    jaccard: tuple[float, ...]
    smallest_share: float
    refused: str | None = None
    space: Space = "behaviour"
    broad: bool = False
    steadiness: float | None = None
    telling: float | None = None
    telling_low: float | None = None
    kept_share: float | None = None

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> "Candidate":
        """Return the candidate that `asdict` told; what was not yet known when it was stored has its default."""
        return cls(**(told | {"jaccard": tuple(told["jaccard"])}))

    @property
    def is_telling(self) -> bool:
        """Tell whether the clusters surely tell something of what users do next."""
        return self.telling_low is not None and self.telling_low > 0

    @property
    def score(self) -> float:
        """Return separation × stability × steadiness × telling, less what moved users and broad clusters cost.

        What is not known counts as 1, but for the outcomes: what is not surely told counts as told of nothing.
        """
        found = max(self.separation, 0.0) * self.stability
        if self.steadiness is not None:
            found *= self.steadiness
        if self.telling_low is not None:
            found *= TELLING_FREE + max(self.telling_low, 0.0)
        if self.kept_share is not None:
            found *= 1 - MOVED_COST * (1 - self.kept_share)
        return found * (BROAD_COST if self.broad else 1)

    @property
    def telling_share_min(self) -> float:
        """Return how much of what the most telling candidate tells it has to tell."""
        return BLIND_SHARE_MIN if self.space == "behaviour" else TELLING_SHARE_MIN

    @property
    def name(self) -> str:
        """Say how it was found."""
        return f"{self.method} {self.k} by {self.space}{', kept' if self.kept else ''}"

    def judgement(self) -> str:
        """Say how it was found and judged, as far as that is known."""
        known = {
            "stability of refits": self.stability,
            "steadiness from an earlier snapshot": self.steadiness,
            "separation": self.separation,
            "telling": self.telling,
            "share of users who keep their segment": self.kept_share,
        }
        figures = ", ".join(f"{name} {value:.2f}" for name, value in known.items() if value is not None)
        return f"{self.name}; {figures}".replace("-0.", "\N{MINUS SIGN}0.")

    def refuse(self, share_min: float, stability_min: float) -> str | None:
        """Say why it is not eligible, whatever the others are like; None if it is."""
        if self.stability < stability_min:
            return f"its stability is {self.stability:.2f}, at least {stability_min:g} is needed"
        if self.space != "behaviour" and not self.is_telling:
            return "it was made to tell what users do next, and does not surely tell anything of it"
        if self.separation < SEPARATION_MIN and not self.is_telling:
            found = f"its segments are {self.separation:.2f} times as separate as parts of one heap"
            return f"{found}, at least {SEPARATION_MIN:g} is needed"
        if min(self.jaccard) < JACCARD_MIN:
            found = f"refits find one of its segments again by {min(self.jaccard):.2f}"
            return f"{found}, at least {JACCARD_MIN:g} is needed"
        if self.smallest_share < share_min:
            few = f"its smallest segment has {100 * self.smallest_share:.1f} % of users"
            return f"{few}, at least {100 * share_min:g} % is needed"
        return None


def judge(candidates: Sequence[Candidate], share_min: float, stability_min: float) -> list[Candidate]:
    """Return candidates with the reasons for which they are not eligible, the one that the others give included.

    Of those that are stable enough, one that tells much less of what users do next than another is not: less than four
    fifths or, where it was found by behaviour, than nine tenths.
    """
    found = [replace(one, refused=one.refuse(share_min, stability_min)) for one in candidates]
    most = max((one.telling or 0.0 for one in found if one.refused is None and one.is_telling), default=0.0)
    return [
        replace(one, refused=f"it tells {one.telling or 0:.2f} of what users do next, another {most:.2f}")
        if one.refused is None and most > 0 and (one.telling or 0.0) < one.telling_share_min * most
        else one
        for one in found
    ]


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """Choose those that serve if their score is near the best, else the fewest clusters whose score is.

    Where none is eligible it is the best by score of those that were found by behaviour.
    """
    eligible = [one for one in candidates if one.refused is None]
    if not eligible:
        return max((one for one in candidates if one.space == "behaviour"), key=lambda one: one.score)
    best = max(one.score for one in eligible)
    near = [one for one in eligible if one.score >= (1 - TOLERANCE) * best]
    return min(near, key=lambda one: (not one.kept, one.k, -one.score))

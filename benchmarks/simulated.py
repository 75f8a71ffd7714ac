"""Worlds whose truth is known, and how often Habitus decides as it should in them."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from models.evaluation import Bootstrap, Estimate, Probabilities
from models.promotion import Decision, decide
from models.segments import align, assign, fit

ROWS = 800
"""Users that a model is tested on."""
CALIBRATED = {
    "log_loss": Estimate(0.5, 0.48, 0.52),
    "ece": Estimate(0.01, 0.005, 0.02),
    "calibration_slope": Estimate(1.0, 0.9, 1.1),
}
NOISES = {"much better": (1.0, 0.3), "better": (0.7, 0.4), "as good": (0.7, 0.7), "worse": (0.4, 0.7)}
"""How good a challenger is beside the champion: through how much noise the champion sees the odds, and through how much
the challenger does."""
ITSELF = "the champion itself"


class World:
    """Users whose odds to churn are known, what happened to them, and models that see the odds through noise."""

    def __init__(self, seed: int, draws: int = 200) -> None:
        self._random = np.random.default_rng(seed)
        self._odds = self._random.normal(0, 1.5, ROWS)
        self.labels = pd.Series(self._random.random(ROWS) < self.seen(0))
        self.bootstrap = Bootstrap(pd.Series([f"u{number}" for number in range(ROWS)]), seed, draws)

    def seen(self, noise: float) -> Probabilities:
        """Return the probabilities of a model."""
        return np.asarray(1 / (1 + np.exp(-self._odds - self._random.normal(0, 1, ROWS) * noise)))

    def decide(
        self,
        predicted: Mapping[str, Probabilities],
        measured: Mapping[str, Mapping[str, Estimate]] | None = None,
        segments: pd.Series | None = None,
    ) -> Decision:
        """Decide on a `model` beside others; where nothing else was `measured`, all are calibrated."""
        rivals = {"base_rate": np.full(ROWS, 0.5), "recency": self.seen(3)} | dict(predicted)
        assumed = dict.fromkeys(rivals, CALIBRATED) | dict(measured or {})
        return decide(self.labels, rivals, assumed, self.bootstrap, segments)


def decisions(challenger: str, worlds: int) -> Iterator[Decision]:
    """Decide on a challenger in so many worlds."""
    for seed in range(worlds):
        world = World(seed)
        if challenger == ITSELF:
            model = champion = world.seen(0.7)
        else:
            champion, model = (world.seen(noise) for noise in NOISES[challenger])
        yield world.decide({"model": model, "champion": champion})


def refits(snapshot: pd.DataFrame, count: int) -> Iterator[tuple[bool, float]]:
    """Fit segments again with other seeds and orders of rows; yield whether all ids stay, and which share of users."""
    first = fit(snapshot, 3, 8, seed=0)
    champion = align(first, None, None, snapshot, 1, "2024-06-29T00:00:00+00:00", {})
    before = assign(champion, snapshot).set_index("user_id")["segment_id"]
    for seed in range(1, count + 1):
        shuffled = snapshot.sample(frac=1, random_state=seed)
        fitted = fit(shuffled, 3, 8, seed, champion=champion)
        again = align(fitted, champion, snapshot, shuffled, champion.next_number, "2024-07-06T00:00:00+00:00", {})
        now = assign(again, snapshot).set_index("user_id")["segment_id"]
        yield sorted(again.ids) == sorted(champion.ids), float((now == before).mean())

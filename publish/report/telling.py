"""What a report says of the future that its segments tell."""

from datetime import datetime

from features.zones import day_of
from models import telling_words
from models.segments import SegmentModel
from models.telling import RIVALS
from publish.report.content import Estimate, Foretold, Tells


def describe_telling(model: SegmentModel | None, time_zone: str) -> Tells | None:
    """Describe what segments told when they were found; None where there are none, or no outcomes were complete."""
    if model is None or model.tells is None:
        return None
    tells = model.tells
    as_of = datetime.fromisoformat(tells["as_of"])
    sentence = telling_words.headline(tells, str(day_of(as_of, time_zone)))
    return Tells(
        learnt_as_of=datetime.fromisoformat(tells["learnt_as_of"]),
        as_of=as_of,
        days=telling_words.days(tells),
        users=tells["users"],
        sentence=sentence,
        figures=[
            Foretold(
                outcome=row.outcome,
                metric=row.metric,
                segments=row.segments,
                rivals={RIVALS[rival]: value for rival, value in row.rivals.items()},
                ahead=Estimate(value=row.ahead["value"], low=row.ahead["low"], high=row.ahead["high"]),
            )
            for row in telling_words.table(tells)
        ],
    )

"""The run as a history: what it consists of, computed again, compared, taken back, branched off."""

from purerun.history.bisect import Parting, bisect
from purerun.history.compare import Comparison, compare
from purerun.history.error import Gone, HistoryError
from purerun.history.fork import fork
from purerun.history.replay import replay
from purerun.history.rewind import rewind
from purerun.history.seen import Sighting, seen
from purerun.history.stretches import Stretch, fitted, in_force, settings, stretches
from purerun.history.timeline import Point, Timeline, timeline
from purerun.history.verify import Finding, verify
from purerun.history.why import Iteration, Sample, why

__all__ = [
    "Comparison",
    "Finding",
    "Gone",
    "HistoryError",
    "Iteration",
    "Parting",
    "Point",
    "Sample",
    "Sighting",
    "Stretch",
    "Timeline",
    "bisect",
    "compare",
    "fitted",
    "fork",
    "in_force",
    "replay",
    "rewind",
    "seen",
    "settings",
    "stretches",
    "timeline",
    "verify",
    "why",
]

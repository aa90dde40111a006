"""Sinks: frozen values that watch the states of a run.

They alone write, print and look at clocks.  They are handed each state and hand it on;
no set of them changes a digest.
"""

from purerun.sinks.checkpoints import Checkpoint
from purerun.sinks.desk import Desk, SinkError, Watcher
from purerun.sinks.due import Due, due
from purerun.sinks.log import Log
from purerun.sinks.progress import Progress
from purerun.sinks.sink import Sink
from purerun.sinks.watching import Watched, watch

__all__ = ["Checkpoint", "Desk", "Due", "Log", "Progress", "Sink", "SinkError", "Watched", "Watcher", "due", "watch"]

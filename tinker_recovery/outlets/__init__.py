"""What of a run goes to other services: notifications, heartbeats, experiment trackers.

Each has a daemon thread and a bounded queue of its own, so one that fails or hangs delays neither
the loop, nor a recovery, nor for more than a few seconds the exit.
"""

from tinker_recovery.outlets.notify import Notify
from tinker_recovery.outlets.outlets import Outlets
from tinker_recovery.outlets.trackers import WhenSaved

__all__ = ["Notify", "Outlets", "WhenSaved"]

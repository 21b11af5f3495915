"""Who holds a run, by one look at its claims: pure decisions.

A claim holds a run only if a look at all of them, long enough after it was opened, shows no other
that may be alive. Of two claims the one opened later is sure to see the earlier, so never both find
themselves alone. The order of claims by date decides nothing but who withdraws when two see each
other, and every process sees the same order. So dates may be off by any time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Self

PREFIX = "tinker_recovery."
CLAIM = PREFIX + "claim"
"""The key of a claim's metadata whose value is the run's name."""

NOTE = PREFIX + "claimed_session"
"""The key of a note's metadata whose value is the run's name.

A note is a session that says which session its holder trains in: who takes over finishes that.
"""

JOB = PREFIX + "job"
"""The key of a claim's metadata whose value is what submitted the run, for people."""

State = Literal["active", "silent", "released", "ended"]
"""What is known of a session:

- ``active``: the service says that it is.
- ``silent``: it neither ended nor is known to be running.
- ``released``: its own client finished it, and all was well.
- ``ended``: in any other way.
"""


@dataclass(frozen=True, slots=True)
class Claimant:
    """The process that a claim is of, as its metadata say.

    Attributes:
        host: The host name, for people.
        pid: The process id.
        born: The start of the process, since process ids are reused; opaque.
        machine: Identifies the machine and its PID namespace; empty where that is not known.
        journal: The journal it writes, for people.
    """

    host: str
    pid: int
    born: str
    machine: str
    journal: str

    def metadata(self) -> dict[str, str]:
        """As a session keeps it."""
        return {PREFIX + key: str(value) for key, value in asdict(self).items()}

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Self:
        """From what a session kept; what it lacks is empty."""
        said = {key: metadata.get(PREFIX + key, "") for key in cls.__slots__}
        pid = said.pop("pid")
        return cls(pid=int(pid) if pid.isdecimal() else 0, **said)

    def is_process_of(self, other: Claimant) -> bool:
        """Whether both are the same process, as far as that can be known."""
        mine, its = ((each.machine, each.pid, each.born) for each in (self, other))
        return bool(self.machine) and mine == its

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host or 'an unknown host'}"


@dataclass(frozen=True, slots=True)
class SeenClaim:
    """A claim as a look at the service shows it.

    Attributes:
        session_id: Its session.
        created_s: When the service says that it was opened, in seconds since the epoch.
        state: What is known of its session.
        entry: Which try to enter the run it belongs to; one that lost its answer has several.
        claimant: The process it is of.
    """

    session_id: str
    created_s: float
    state: State
    entry: str
    claimant: Claimant

    @property
    def order(self) -> tuple[float, str]:
        """Its place among the claims of a run: the oldest first, as the service dates them."""
        return self.created_s, self.session_id


@dataclass(frozen=True, slots=True)
class Unlisted:
    """The look is too old to show our own claim, so what else it shows decides nothing."""


@dataclass(frozen=True, slots=True)
class Unclear:
    """Our own claim is not shown as active: it is gone, or the service says of none that it is."""


@dataclass(frozen=True, slots=True)
class Alone:
    """No other claim may be alive, once these are finished.

    Attributes:
        finish: Sessions of claims that are not active, or are over, and which the service has not
            ended for good; oldest first.
        fence: Entries that may have left sessions of the run behind.
    """

    finish: tuple[str, ...]
    fence: frozenset[str]


@dataclass(frozen=True, slots=True)
class Behind:
    """Another claim is active.

    Attributes:
        first: The oldest of them.
        withdraw: Whether it is older than ours, which then has to go. If it is not, the others
            withdraw, unless one of them holds the run.
    """

    first: SeenClaim
    withdraw: bool


Place = Unlisted | Unclear | Alone | Behind


def rivals(
    claims: Sequence[SeenClaim], entry: str, is_over: Callable[[SeenClaim], bool]
) -> list[SeenClaim]:
    """The claims of others that may hold the run, oldest first.

    Args:
        claims: All that a look shows.
        entry: Our own try: what it left behind is no rival.
        is_over: Whether a claim is known to be nobody's any more, as its process is dead.
    """
    active = [
        claim
        for claim in claims
        if claim.state == "active" and claim.entry != entry and not is_over(claim)
    ]
    return sorted(active, key=lambda claim: claim.order)


def place_of(
    claims: Sequence[SeenClaim],
    session_id: str,
    entry: str,
    is_over: Callable[[SeenClaim], bool],
) -> Place:
    """Where a claim of ours stands.

    Args:
        claims: All claims of the run's name that a look shows. The look was begun after our claim
            had been open for as long as the service may take to list a session.
        session_id: Our claim.
        entry: Our try to enter the run.
        is_over: As for :func:`rivals`.
    """
    mine = next((claim for claim in claims if claim.session_id == session_id), None)
    if mine is None:
        return Unlisted()
    if mine.state != "active":
        return Unclear()
    others = rivals(claims, entry, is_over)
    if others:
        return Behind(others[0], withdraw=others[0].order < mine.order)
    rest = sorted((claim for claim in claims if claim is not mine), key=lambda claim: claim.order)
    return Alone(
        finish=tuple(claim.session_id for claim in rest if claim.state in {"active", "silent"}),
        fence=frozenset(claim.entry for claim in rest if claim.state != "released") - {entry},
    )

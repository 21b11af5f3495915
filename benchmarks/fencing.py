"""Fencing: processes of several machines that want one run, at a service that is not kind.

Each process has a machine id and a journal of its own, so only the claims at the service keep them
apart. They are started together, or later, while the holder trains, or rests for longer than the
service's limit; the holder is stopped past that limit, taken over, and wakes; an old journal
returns; holders and their successors are killed in each phase of a take-over; the service restarts
while two wait. Most of it is done by whole Supervisors, each in a process that has its own end, and
three at once also by bare claims, which are cheap, so there are many. Half of the cases are played
at a service that lists late and dates sessions wrongly ("unkind").

The promises: no request of a process is executed once a successor trains (every training request
is written down by the server as it is executed, so no process's own word counts); a run ends with
the bits of an undisturbed one; every process comes to an end, and to one that it documents.

All times are those of real life divided by thirty: the service ends a session that is silent for
2 s, and claims, as well as the SDK's own sessions, send a heartbeat every third of a second
(``_fencing_machine.py``). Without the latter the service would end the sessions of whoever trains
for longer than 2 s. A process that a busy machine lets starve for 2 s is taken over like one that
is paused; and of three that start at once and refuse to wait, all may withdraw if one of them
starves for a heartbeat. Neither is a breach; both are counted as "ended otherwise".

    python benchmarks/fencing.py [--races 100] [--rounds 6] [--quick] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import anyio
from _fencing import Outcome, service
from _fencing_case import undisturbed
from _fencing_cases import HOLDER_KILLED, KINDS, play
from _fencing_machine import BEAT_S, LIMIT_S
from _fencing_processes import prepare, progress
from _fencing_races import contestants, paused, race
from _report import Bar, bars, keep_no_state, table

from tinker_recovery.testing import RunState

QUICK_S = 25.0
"""No case is begun after that, counted from the start, once there are enough."""

QUICK_CASES, CASES = 30, 400
AT_ONCE = 4
"""Cases with Supervisors."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--races", type=int, default=100, help="with bare claims, of each kind (default 100)"
    )
    parser.add_argument(
        "--rounds", type=int, default=6, help="of every case with Supervisors (default 6)"
    )
    parser.add_argument("--only", default="", help="cases with Supervisors of this name alone")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help=f"of them ({AT_ONCE})")
    parser.add_argument("--quick", action="store_true", help="under 50 s")
    parser.add_argument("--json", action="store_true", help="print the bars on the last line")
    return parser.parse_args()


@dataclass
class Play:
    """What has been played so far.

    Attributes:
        until_s: When no more cases are begun, once there are enough; None for all of them.
    """

    until_s: float | None
    outcomes: list[Outcome] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @property
    def is_over(self) -> bool:
        """Whether no more is begun."""
        return self.until_s is not None and time.monotonic() - self.began > self.until_s

    def note(self, outcome: Outcome) -> None:
        """Take over the outcome of a case."""
        self.outcomes.append(outcome)
        if not outcome.as_made:
            progress(f"ended otherwise: {outcome}")
        progress(f"{len(self.outcomes)} cases, {time.monotonic() - self.began:.0f} s")

    async def races(self, races: int) -> None:
        """Those with bare claims."""
        async with (
            service(unkind=False) as (kind, _, settle_s),
            service(unkind=True) as (unkind, _, late_s),
            contestants(kind, 3, settle_s) as three,
            contestants(unkind, 3, late_s) as others,
        ):
            for number in range(races):
                if self.is_over and len(self.outcomes) >= QUICK_CASES:
                    return
                for outcome in await asyncio.gather(
                    race("bare claims: race of three", f"race-{number}", three),
                    race("bare claims: race of three, unkind", f"race-{number}", others),
                ):
                    self.note(outcome)
                if number % 4 == 0:
                    for outcome in await asyncio.gather(
                        paused("bare claims: suspended", f"pause-{number}", kind, three),
                        paused("bare claims: suspended, unkind", f"pause-{number}", unkind, others),
                    ):
                        self.note(outcome)

    async def supervisors(self, cases: Iterator[tuple[str, int, bool]], expected: RunState) -> None:
        """Those with Supervisors, one after another."""
        for kind, number, unkind in cases:
            if self.is_over:
                return
            self.note(await play(kind, number, expected, unkind=unkind))


def cases(rounds: int, only: str) -> Iterator[tuple[str, int, bool]]:
    """Every case with Supervisors, in turns at a kind and an unkind service."""
    kinds = [kind for kind in KINDS if only in kind]
    for number in range(rounds):
        for place, kind in enumerate(kinds):
            yield kind, number, (number + place) % 2 == 1


async def play_all(given: argparse.Namespace) -> list[Outcome]:
    """Play the cases, with progress on stderr."""
    played = Play(QUICK_S if given.quick else None)
    expected = await undisturbed()
    todo = cases(given.rounds, given.only)
    async with anyio.create_task_group() as group:
        group.start_soon(played.races, given.races)
        for _ in range(given.at_once):
            group.start_soon(played.supervisors, todo, expected)
    return played.outcomes


def show(outcomes: list[Outcome]) -> None:
    """Print the results by kind of case."""
    rows = []
    for kind, group in itertools.groupby(
        sorted(outcomes, key=lambda outcome: outcome.kind), key=lambda outcome: outcome.kind
    ):
        own = list(group)
        took = [outcome.takeover_s for outcome in own if outcome.takeover_s is not None]
        otherwise = sum(bool(outcome.otherwise) for outcome in own)
        median = f"{statistics.median(took):.2f} s" if took else ""
        rows.append(
            (kind, str(len(own)), str(otherwise), median, f"{max(took):.2f} s" if took else "")
        )
    table(("case", "played", "ended otherwise", "take-over, median", "longest"), rows)
    deaths = [
        each.takeover_s
        for each in outcomes
        if each.kind.startswith(HOLDER_KILLED) and each.takeover_s is not None
    ]
    if deaths:
        print(
            f"\nfrom the holder's death to the first step of one that waits: median "
            f"{statistics.median(deaths):.2f} s, at most {max(deaths):.2f} s\n"
            f"where the service ends a silent session after {LIMIT_S:g} s, and heartbeats are sent "
            f"every {BEAT_S:.2f} s"
        )


def main() -> None:
    """Play the cases and print the results."""
    given = arguments()
    keep_no_state()
    prepare()
    outcomes = anyio.run(play_all, given)
    show(outcomes)
    bars(
        "fencing",
        [
            Bar("two trainers", sum(bool(each.two_trainers) for each in outcomes), 0),
            Bar("weights differ", sum(bool(each.weights) for each in outcomes), 0),
            Bar("failed", sum(bool(each.failed) for each in outcomes), 0),
            Bar("stuck", sum(bool(each.stuck) for each in outcomes), 0),
            Bar("cases", len(outcomes), QUICK_CASES if given.quick else CASES, better="higher"),
        ],
        as_json=given.json,
    )


if __name__ == "__main__":
    main()

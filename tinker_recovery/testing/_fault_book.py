"""The fault book: the rules that may still strike, and the faults that have."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from tinker_recovery.testing._faults import FaultRule

_POLL_S = 0.005
"""How often a wait reads its clock, which may be a test's own."""


@dataclass(frozen=True, slots=True)
class FiredFault:
    """A fault that has struck.

    Attributes:
        rule: The rule that struck.
        run: The Tinker run id; empty if the request belongs to none.
        step: Optimizer steps in its weights; 0 if the request belongs to no run.
        at: Seconds since the epoch.
        monotonic: Seconds of the monotonic clock.
        request: The kind of request that was struck.
        name: What tinker_recovery's user calls the run, by the metadata of its checkpoints; empty
            if they have none.
    """

    rule: FaultRule
    run: str
    step: int
    at: float = field(default_factory=time.time)
    monotonic: float = field(default_factory=time.monotonic)
    request: str = ""
    name: str = ""


@dataclass(slots=True, eq=False)
class Entry:
    """A rule in the book.

    Attributes:
        rule: The rule.
        from_: The earliest time it may strike, by the book's clock.
        left: How often it may still strike; None for no limit.
        until: When it stops, set by its first strike; None for no limit.
        released: Whether it was taken back.
        struck: Whether it has struck.
    """

    rule: FaultRule
    from_: float
    left: int | None
    until: float | None = None
    released: bool = False
    struck: bool = False


@dataclass(frozen=True, slots=True)
class Strike:
    """One strike of a rule, at a time of the book's clock."""

    entry: Entry
    at: float

    @property
    def rule(self) -> FaultRule:
        """The rule that strikes."""
        return self.entry.rule


class FaultBook:
    """The rules that may still strike, and the faults that have; safe to use from any thread.

    Args:
        clock: Seconds, for ``after_s``, ``for_s`` and ``delay_s``.
        struck: Called, by the thread whose request it is, when a rule strikes for the first time.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        struck: Callable[[FiredFault], object] = lambda _: None,
    ) -> None:
        self.clock = clock
        self._struck = struck
        self._lock = threading.Lock()
        self._entries: list[Entry] = []
        self._spent: list[Entry] = []
        self._fired: list[FiredFault] = []
        self.parent_of: Callable[[str], str | None] = lambda _: None
        """The Tinker run whose checkpoint another was begun from; its host knows."""
        self.name_of: Callable[[str], str] = lambda _: ""
        """What a Tinker run's user calls it, if its own checkpoints say; its host knows."""
        self._names: dict[str, str] = {}

    def add(self, rule: FaultRule) -> None:
        """Add a rule; earlier rules are asked first."""
        times = 1 if rule.times is None and rule.for_s is None else rule.times
        with self._lock:
            self._entries.append(Entry(rule, self.clock() + rule.after_s, times))

    def release(self, rule: FaultRule | None = None) -> None:
        """Take a rule back, or all of them; requests that they hold up continue."""
        with self._lock:
            for entry in [*self._entries, *self._spent]:
                if rule in (None, entry.rule):
                    entry.released = True
            self._entries = [entry for entry in self._entries if not entry.released]
            self._spent = [entry for entry in self._spent if not entry.released]

    def fired(self) -> list[FiredFault]:
        """The faults that have struck, oldest first."""
        with self._lock:
            return list(self._fired)

    def watches_wire(self) -> bool:
        """Whether any rule is for requests as they arrive."""
        with self._lock:
            return any(entry.rule.layer == "wire" for entry in self._entries)

    def strike(
        self,
        layer: str,
        request: str,
        run: str | None,
        step: int | None,
        *,
        polled: str | None = None,
        but_not: Collection[Entry] = (),
    ) -> Strike | None:
        """The strike on this request, if a rule matches.

        Args:
            layer: Where the request is: ``wire`` or ``engine``.
            request: Its kind.
            run: Its Tinker run id, if it belongs to one.
            step: Optimizer steps in that run's weights.
            polled: For a poll, the kind of request that is polled.
            but_not: Entries that have struck this request already.
        """
        with self._lock:
            now = self.clock()
            self._entries = [
                entry for entry in self._entries if entry.until is None or now < entry.until
            ]
            for entry in self._entries:
                rule = entry.rule
                # Once its time has begun, a rule strikes at any step.
                at_step = entry.until is not None or rule.at_step in (None, step)
                if (
                    rule.layer == layer
                    and entry not in but_not
                    and now >= entry.from_
                    and at_step
                    and rule.matches(request, run, polled, self._before)
                ):
                    name = self._name(run)
                    fired = FiredFault(rule, run or "", step or 0, request=request, name=name)
                    first, entry.struck = not entry.struck, True
                    self._use(entry, now)
                    self._fired.append(fired)
                    break
            else:
                return None
        if first:
            self._struck(fired)
        return Strike(entry, now)

    def _name(self, run: str | None) -> str:
        if run is None:
            return ""
        if run not in self._names:
            known = next(filter(None, map(self.name_of, [run, *self._before(run)])), "")
            if not known:
                return ""
            self._names[run] = known
        return self._names[run]

    def _before(self, run: str) -> dict[str, None]:
        """The Tinker runs that one was begun from, the newest first; one for each recovery."""
        before: dict[str, None] = {}
        parent = self.parent_of(run)
        while parent is not None and parent not in before:
            before[parent] = None
            parent = self.parent_of(parent)
        return before

    def _use(self, entry: Entry, now: float) -> None:
        if entry.until is None and entry.rule.for_s is not None:
            entry.until = now + entry.rule.for_s
        if entry.left is not None:
            entry.left -= 1
            if entry.left == 0:
                self._entries.remove(entry)
                self._spent.append(entry)

    async def wait_over(self, strike: Strike, for_s: float | None = None) -> None:
        """Return when a strike is over, or its rule is released.

        Args:
            strike: The strike.
            for_s: Seconds that it lasts; None for the rest of its rule's time.
        """
        entry = strike.entry
        until = entry.until if for_s is None else strike.at + for_s
        while not entry.released and (until is None or self.clock() < until):  # noqa: ASYNC110 - the clock may be a test's own, and sets no event
            await asyncio.sleep(_POLL_S)

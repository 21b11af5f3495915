"""FaultRule: which request a fault strikes, when, how often or for how long."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Container
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, get_args

from tinker_recovery.testing.actions import (
    RUNLESS,
    SPECS,
    STATUSES,
    Action,
    Body,
    Category,
    QueueState,
    Request,
    Spec,
    Target,
)

_ABOVE_ZERO = math.ulp(0.0)

__all__ = ["Action", "Category", "FaultRule", "Request", "Target"]


@dataclass(frozen=True, slots=True, repr=False)
class FaultRule:
    """A scripted fault. Its ``repr`` is the call that makes it.

    Attributes:
        action: One of the table in :mod:`tinker_recovery.testing.actions`.
        at_step: Optimizer steps in the run's weights when the request's turn comes (for a poll:
            the turn of the request it polls); None for any. For ``load_weights`` the steps in the
            checkpoint, for ``create_model`` 0. With ``for_s``, the step at which its time begins.
        request: The kind of request. None for any; but engine faults strike ``create_model``,
            ``load_weights`` and ``asample`` only if named here.
        run: The Tinker run id, or, of a sampling request, the sampler's; None for any.
        follow: With ``run``: also any Tinker run that was begun from a checkpoint of that one, or
            of one that was: those that a recovery makes, and forks.
        times: How often it strikes. None: once, or, with ``for_s``, every time.
        category: For ``poison``, ``fail`` and ``fail_session``.
        message: For ``poison``, ``fail``, ``fail_session`` and ``status``.
        quiet: For ``poison``: hang instead of failing.
        for_s: Seconds from its first strike during which it strikes; None for no limit.
        after_s: Seconds after its injection before it can strike.
        status: For ``status``: the HTTP status, 400 or more.
        retry_after_s: For ``status``: seconds of a Retry-After header.
        polled: For ``retrieve_future``: the kind of request that is polled; None for any.
        delay_s: For ``slow``: seconds of delay.
        silent: For ``truncate``: leave the connection open.
        body: For ``malformed``: the kind of reply.
        queue_state: For ``pause``: the reason given.
        loss: For ``nan_loss``: the loss reported.
        sticky: For ``nan_loss``: whether the weights become NaN too.

    Raises:
        ValueError: A field is out of range, or does not belong to the action.
    """

    action: Action
    at_step: int | None = None
    request: Target | None = None
    run: str | None = None
    times: int | None = None
    category: Category = "server"
    message: str = "injected backend failure"
    quiet: bool = False
    for_s: float | None = field(default=None, kw_only=True)
    after_s: float = field(default=0.0, kw_only=True)
    status: int = field(default=503, kw_only=True)
    retry_after_s: float | None = field(default=None, kw_only=True)
    polled: Request | None = field(default=None, kw_only=True)
    delay_s: float = field(default=0.1, kw_only=True)
    silent: bool = field(default=False, kw_only=True)
    body: Body = field(default="text", kw_only=True)
    queue_state: QueueState = field(default="paused_capacity", kw_only=True)
    loss: Literal["nan", "inf"] = field(default="nan", kw_only=True)
    sticky: bool = field(default=False, kw_only=True)
    follow: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        self._one_of("action", tuple(SPECS))
        self._one_of("category", get_args(Category))
        self._one_of("body", get_args(Body))
        self._one_of("queue_state", get_args(QueueState))
        self._one_of("loss", ("nan", "inf"))
        self._one_of("status", STATUSES)
        for name in ("quiet", "silent", "sticky", "follow"):
            self._one_of(name, (False, True))
        if self.request is not None:
            self._one_of("request", self._spec.requests)
        if self.polled is not None:
            self._one_of("polled", get_args(Request))
        self._number("at_step", 0, "0 or more, or None for any", whole=True)
        self._number("times", 1, "1 or more, or None for any", whole=True)
        self._number("after_s", 0, "0 or more")
        for name in ("for_s", "delay_s", "retry_after_s"):
            self._number(name, _ABOVE_ZERO, "seconds, more than 0")
        self._check_combination()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The rule that a word describes: ``ACTION[:REQUEST][@STEP][,FIELD=VALUE]``.

        As in ``poison@70``, ``gone:forward_backward@12`` or ``status:optim_step,status=503``.

        Raises:
            ValueError: It describes none; says what is wrong.
        """
        head, *pairs = text.split(",")
        what, at, step = head.partition("@")
        action, _, request = what.partition(":")
        given: dict[str, Any] = {"action": action, "request": request or None}
        if at:
            if not step.isdecimal():
                raise ValueError(f"{step!r} is not a step: ACTION@STEP, a number from 0")
            given["at_step"] = int(step)
        known = {one.name for one in fields(cls)} - given.keys()
        for pair in pairs:
            name, _, value = pair.partition("=")
            if name not in known:
                raise ValueError(
                    f"{name!r} is no field of a fault to be set like that: "
                    f"{', '.join(sorted(known))}"
                )
            given[name] = _value(value)
        return cls(**given)

    @property
    def _spec(self) -> Spec:
        return SPECS[self.action]

    @property
    def layer(self) -> Literal["engine", "wire"]:
        """Where it strikes."""
        return self._spec.layer

    def _refuse(self, name: str, allowed: str) -> None:
        raise ValueError(f"{name}={getattr(self, name)!r} is not allowed: {allowed}")

    def _one_of(self, name: str, allowed: tuple[object, ...]) -> None:
        value = getattr(self, name)
        if not isinstance(value, str | int | bool) or value not in allowed:
            self._refuse(name, ", ".join(str(one) for one in allowed))

    def _number(self, name: str, least: float, allowed: str, *, whole: bool = False) -> None:
        value = getattr(self, name)
        if value is None and name not in ("after_s", "delay_s"):
            return
        kinds = int if whole else int | float
        if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value < math.inf:
            self._refuse(name, allowed)

    def _check_combination(self) -> None:
        for name in _defaults().keys() & _OWN:
            if getattr(self, name) != _defaults()[name] and name not in self._spec.takes:
                takers = ", ".join(repr(key) for key, spec in SPECS.items() if name in spec.takes)
                raise ValueError(
                    f"{name}={getattr(self, name)!r} does not go with action={self.action!r}: "
                    f"only {takers}"
                )
        if self.polled is not None and self.request != "retrieve_future":
            raise ValueError(
                f"polled={self.polled!r} does not go with request={self.request!r}: only "
                "'retrieve_future'"
            )
        if self.follow and self.run is None:
            self._refuse("follow", "True only with run=, the Tinker run that is followed")
        for name in ("at_step", "run"):
            if getattr(self, name) is not None and self.request in RUNLESS:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} does not go with request={self.request!r}, "
                    "which belongs to no run: only None"
                )

    def matches(
        self,
        request: str,
        run: str | None,
        polled: str | None,
        before: Callable[[str], Container[str]],
    ) -> bool:
        """Whether it is for such a request, at some step; ``before`` says what a run began from."""
        wanted = (self.request,) if self.request is not None else self._spec.default
        of_run = self.run in (None, run) or (
            self.follow and run is not None and self.run in before(run)
        )
        return request in wanted and of_run and self.polled in (None, polled)

    def __repr__(self) -> str:
        given = [
            f"{name}={getattr(self, name)!r}"
            for name, default in _defaults().items()
            if getattr(self, name) != default
        ]
        return f"FaultRule({', '.join([repr(self.action), *given])})"


def _value(text: str) -> Any:
    """A number, true or false, or else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float) else text


def _defaults() -> dict[str, object]:
    return {one.name: one.default for one in fields(FaultRule) if one.name != "action"}


_OWN = frozenset[str]().union(*(spec.takes for spec in SPECS.values()))

"""How a run starts: the arguments of ``attempts`` and ``run``, checked before anything happens."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, TypedDict

import tinker
from tinker import types

from tinker_recovery.checkpoints import run_id_of
from tinker_recovery.errors import UsageError
from tinker_recovery.service import (
    Connection,
    FromBaseModel,
    FromCallable,
    FromCheckpoint,
    Origin,
)

UPDATES_PER_STEP = "updates_per_step"
"""In how a run starts, if it is not 1."""

_WAYS = ("base_model", "from_checkpoint", "adopt", "start")
_MODEL_OPTIONS = (
    "rank",
    "seed",
    "train_mlp",
    "train_attn",
    "train_unembed",
    "user_metadata",
    "optimizer",
)


class StartOptions(TypedDict, total=False):
    """Arguments of ``attempts`` and ``run``. Exactly one of the first four says how to start.

    Attributes:
        base_model: Create a fresh LoRA run on this model.
        from_checkpoint: Create the run from a saved state, ``tinker://RUN/weights/NAME``.
        adopt: Continue with a client the user already has. It is saved at once, since it cannot be
            remade.
        start: The user's own way to make a client from a fresh ServiceClient, sync or async.
        name: The run's name in logs, spans and reports; unique among the runs under way. With a
            name, a run whose process died continues where it was when the same command is run
            again.
        lineage: Which run of this name is meant, if the service has several that the journal does
            not know: the (beginning of the) lineage id, as the error lists them, or ``"new"`` to
            begin another beside them. A run that the journal knows is resumed all the same.
        on_lease: What to do if another process trains the run of this name: ``"wait"`` until that
            is over (default), or ``"refuse"``: raise :class:`RunHeld`, which names the process.
        extend: Whether a run of this name that has finished is trained on, from its last step,
            instead of refused with :class:`RunFinished`. It changes nothing for any other, so a
            command may keep it; how far is for the loop to say.
        start_step: Steps already in the weights; default 0, or what the checkpoint's metadata say.
        updates_per_step: How many ``optim_step`` calls an iteration of the loop has; default 1.
            ``start_step``, schedules and recoveries count iterations, and no checkpoint of the
            schedule lies inside one.
        job: Which job, and which try of it, has started the run: a text, in the metadata of its
            claim and of every checkpoint, and in its events.
        adopt_service: With ``adopt``: the ServiceClient to close when the adopted client is
            replaced.
        rank: With ``base_model``: the LoRA rank.
        seed: With ``base_model``: the seed; by default one is drawn, so starting over repeats it.
        train_mlp: With ``base_model``, as in ``create_lora_training_client``.
        train_attn: The same.
        train_unembed: The same.
        user_metadata: With ``base_model``: metadata of the Tinker run.
        optimizer: With ``base_model``: the optimizer's configuration.
    """

    base_model: str
    from_checkpoint: str
    adopt: tinker.TrainingClient
    start: Callable[[tinker.ServiceClient], Any]
    name: str
    lineage: str
    on_lease: Literal["wait", "refuse"]
    extend: bool
    start_step: int
    updates_per_step: int
    job: str
    adopt_service: tinker.ServiceClient
    rank: int
    seed: int
    train_mlp: bool
    train_attn: bool
    train_unembed: bool
    user_metadata: dict[str, str]
    optimizer: types.OptimizerConfig


@dataclass(frozen=True, slots=True, eq=False)
class StartPlan:
    """A checked start.

    Attributes:
        name: The run's name, or None to have one made.
        lineage: Which run of this name is meant, ``"new"`` for none of them; None if not said.
        origin: How to make the first client, and to start over; None for an adopted one.
        adopted: The user's own client, if that is what was given.
        start_step: The step the user gave; None to ask the checkpoint.
        on_lease: What to do if another process trains the run.
        described: How it starts, as the journal keeps it: no secrets, and nothing of
            ``user_metadata``.
        seed_is_drawn: Whether the seed was drawn here, because none was given.
        job: What submitted it; None if it is no job's.
        extend: Whether it is trained on if it has finished.
    """

    name: str | None
    lineage: str | None
    origin: Origin | None
    adopted: Connection | None
    start_step: int | None
    on_lease: Literal["wait", "refuse"]
    described: Mapping[str, Any]
    seed_is_drawn: bool
    job: str | None
    extend: bool

    def with_seed(self, seed: int) -> Self:
        """The same start with the seed that was drawn when the run was begun."""
        if not isinstance(self.origin, FromBaseModel):
            return self
        options = {**self.origin.options, "seed": seed}
        return replace(
            self,
            origin=FromBaseModel(self.origin.base_model, options),
            described={**self.described, "seed": seed},
        )

    @property
    def parent(self) -> str | None:
        """Path of the checkpoint to start from, if it is one."""
        return self.origin.path if isinstance(self.origin, FromCheckpoint) else None


def plan_start(given: StartOptions, *, restore_optimizer: bool) -> StartPlan:
    """Check the arguments of ``attempts`` and ``run``.

    Raises:
        UsageError: One is unknown or of the wrong kind, or they do not go together.
    """
    options: dict[str, Any] = dict(given)
    unknown = options.keys() - StartOptions.__annotations__.keys()
    if unknown:
        raise UsageError(
            f"unknown argument {min(unknown)!r}; allowed are "
            f"{', '.join(StartOptions.__annotations__)}"
        )
    ways = [way for way in _WAYS if options.get(way) is not None]
    if len(ways) != 1:
        *others, last = ways or ["none"]
        given_ways = f"{', '.join(others)} and {last} were" if others else f"{last} was"
        raise UsageError(
            f"a run starts in exactly one way, and {given_ways} given: choose one of "
            f"{', '.join(_WAYS)}"
        )
    way = ways[0]
    stray = [
        key
        for key in (*_MODEL_OPTIONS, "adopt_service")
        if key in options and way != ("adopt" if key == "adopt_service" else "base_model")
    ]
    if stray:
        raise UsageError(f"{stray[0]}={options[stray[0]]!r} does not go with {way}=")
    start_step = options.get("start_step")
    if start_step is not None and (type(start_step) is not int or start_step < 0):
        raise UsageError(f"start_step={start_step!r} is not allowed: an int, 0 or more")
    updates = options.get(UPDATES_PER_STEP, 1)
    if type(updates) is not int or updates < 1:
        raise UsageError(f"updates_per_step={updates!r} is not allowed: an int, 1 or more")
    name, lineage, job, extend = _names_in(options)
    on_lease = options.get("on_lease", "wait")
    if on_lease not in ("wait", "refuse"):
        raise UsageError(f"on_lease={on_lease!r} is not allowed: 'wait' or 'refuse'")
    origin, adopted = _ways_in(way, options, restore_optimizer=restore_optimizer)
    return StartPlan(
        name,
        lineage,
        origin,
        adopted,
        start_step,
        on_lease,
        _described(way, options[way], origin)
        | ({} if updates == 1 else {UPDATES_PER_STEP: updates}),
        way == "base_model" and options.get("seed") is None,
        job,
        extend,
    )


def _names_in(options: dict[str, Any]) -> tuple[str | None, str | None, str | None, bool]:
    """The name, what goes with it alone, and the job."""
    name, lineage, job = options.get("name"), options.get("lineage"), options.get("job")
    for key, text in (("name", name), ("lineage", lineage), ("job", job)):
        if text is not None and (not isinstance(text, str) or not text.strip()):
            raise UsageError(f"{key}={text!r} is not allowed: a text that is not empty")
    if lineage is not None and name is None:
        raise UsageError(f"lineage={lineage!r} goes with name=: it says which run of a name")
    extend = options.get("extend", False)
    if type(extend) is not bool:
        raise UsageError(f"extend={extend!r} is not allowed: True or False")
    if extend and name is None:
        raise UsageError("extend=True goes with name=: it says which run is trained on")
    return name, lineage, job, extend


def _described(way: str, value: Any, origin: Origin | None) -> dict[str, Any]:
    described: dict[str, Any] = {"way": way}
    if isinstance(origin, FromBaseModel):
        described["base_model"] = origin.base_model
        for key, option in origin.options.items():
            if key == "optimizer":
                described[key] = option.model_dump(mode="json")
            elif key != "user_metadata":
                described[key] = option
    elif isinstance(origin, FromCheckpoint):
        described["from_checkpoint"] = origin.path
    elif way == "start":
        described["start"] = getattr(value, "__qualname__", type(value).__qualname__)
    return described


def _ways_in(
    way: str, options: dict[str, Any], *, restore_optimizer: bool
) -> tuple[Origin | None, Connection | None]:
    value = options[way]
    if way == "base_model":
        chosen = {key: options[key] for key in _MODEL_OPTIONS if key in options}
        if chosen.get("seed") is None:
            chosen["seed"] = secrets.randbelow(2**31)
        return FromBaseModel(value, chosen), None
    if way == "from_checkpoint":
        run_id_of(value)  # refuses what is no checkpoint path
        return FromCheckpoint(value, optimizer=restore_optimizer), None
    if way == "start":
        if not callable(value):
            raise UsageError(f"start={value!r} is not allowed: a function of a ServiceClient")
        return FromCallable(value), None
    if not isinstance(value, tinker.TrainingClient):
        raise UsageError(f"adopt={value!r} is not allowed: a tinker.TrainingClient")
    service = options.get("adopt_service")
    return None, Connection(value, str(value.model_id), service)

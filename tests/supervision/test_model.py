"""Random commands and crashes, compared with a small model of what a supervisor is."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from virtual import Kid, World, states

from tinker_recovery.supervision import (
    Backoff,
    ChildError,
    RestartLimitReached,
    SupervisionTree,
)

IDS = "abcd"
STRATEGIES = ["one_for_one", "one_for_all", "rest_for_one"]
MAX_RESTARTS, MAX_SECONDS = 4, 30.0

commands = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["crash", "finish", "terminate", "restart", "delete", "start"]),
            st.sampled_from(IDS),
        ),
        st.tuples(st.just("wait"), st.sampled_from([0.4, 1.0, 20.0])),
    ),
    max_size=25,
)
kinds = st.fixed_dictionaries(
    {one: st.sampled_from(["permanent", "transient", "temporary"]) for one in IDS}
)


class Escalation(Exception):
    """The model gave up."""


@dataclass
class Model:
    """What a tree of children that start and stop at once should be."""

    strategy: str
    kinds: dict[str, str]
    backoff_s: float = 0.0
    now: float = 0.0
    states: dict[str, str] = field(default_factory=lambda: dict.fromkeys(IDS, "running"))
    starts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(IDS, 1))
    manual: set[str] = field(default_factory=set)
    due: dict[str, float] = field(default_factory=dict)
    spent: list[float] = field(default_factory=list)

    def up(self, child: str) -> None:
        self.states[child] = "running"
        self.starts[child] += 1
        self.manual.discard(child)
        self.due.pop(child, None)

    def down(self, child: str) -> None:
        self.due.pop(child, None)
        if self.kinds[child] == "temporary":
            del self.states[child]
        else:
            self.states[child] = "stopped"

    def exit(self, child: str, *, normal: bool) -> None:
        kind = self.kinds[child]
        if kind == "temporary" or (kind == "transient" and normal):
            self.down(child)
            return
        self.spent = [moment for moment in self.spent if self.now - moment <= MAX_SECONDS]
        if len(self.spent) == MAX_RESTARTS:
            raise Escalation
        self.spent.append(self.now)
        if self.backoff_s:
            self.states[child] = "restarting"
            self.due[child] = self.now + self.backoff_s
            return
        order = list(self.states)
        taken = {
            "one_for_one": [child],
            "one_for_all": order,
            "rest_for_one": order[order.index(child) :],
        }
        for sibling in taken[self.strategy]:
            if self.kinds[sibling] == "temporary":
                self.down(sibling)
            elif sibling not in self.manual:
                self.up(sibling)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for child, due in list(self.due.items()):
            if due <= self.now:
                self.up(child)

    def command(self, command: str, child: str) -> str:
        """Carry it out; returns the name of the error it ends in, if any."""
        state = self.states.get(child)
        if command == "start":
            if state is None:
                self.states[child] = "running"
                self.up(child)
                return ""
            return "ChildAlreadyPresent" if state == "stopped" else "ChildAlreadyStarted"
        if state is None:
            return "ChildNotFound"
        if command == "terminate":
            self.manual.add(child)
            self.down(child)
            return ""
        if state != "stopped":
            return "ChildRunning" if state == "running" else "ChildRestarting"
        if command == "restart":
            self.up(child)
        else:
            del self.states[child]
        return ""


async def carry_out(tree: SupervisionTree, kid: Kid, command: str) -> str:
    try:
        if command == "start":
            await tree.start_child(kid.spec(restart=KINDS[kid]))
        elif command == "terminate":
            await tree.terminate_child(kid.id)
        elif command == "restart":
            await tree.restart_child(kid.id)
        else:
            await tree.delete_child(kid.id)
    except ChildError as error:
        return type(error).__name__
    return ""


KINDS: dict[Kid, str] = {}


async def compare(model: Model, script: list[tuple[str, str | float]]) -> None:
    world = World()
    kids = {one: world.kid(one) for one in IDS}
    KINDS.clear()
    KINDS.update({kid: model.kinds[one] for one, kid in kids.items()})
    backoff = Backoff(model.backoff_s, model.backoff_s, factor=1, jitter=0)
    tree = world.tree(
        [kid.spec(restart=KINDS[kid]) for kid in kids.values()],
        strategy=model.strategy,
        max_restarts=MAX_RESTARTS,
        max_seconds=MAX_SECONDS,
        backoff=backoff,
    )
    expected_to_give_up = False
    try:
        async with tree:
            for command, target in script:
                # The model's ties are not the clock's: a moment between any two commands.
                model.wait(0.001)
                await world.clock.sleep(0.001)
                if isinstance(target, float):
                    model.wait(target)
                    await world.clock.sleep(target)
                elif command in ("crash", "finish"):
                    if model.states.get(target) != "running":
                        continue
                    getattr(kids[target], command)()
                    try:
                        model.exit(target, normal=command == "finish")
                    except Escalation:
                        expected_to_give_up = True
                        await world.clock.sleep(1000)
                else:
                    expected = model.command(command, target)
                    assert await carry_out(tree, kids[target], command) == expected
                await world.settle()
                assert states(tree) == model.states
                assert list(states(tree)) == list(model.states)
                assert {one: kid.starts for one, kid in kids.items()} == model.starts
                counts = tree.count_children()
                running = [one for one, state in model.states.items() if state == "running"]
                assert (counts.specs, counts.active) == (len(model.states), len(running))
                assert [one for one, kid in kids.items() if kid.alive] == sorted(running)
    except RestartLimitReached:
        assert expected_to_give_up
    else:
        assert not expected_to_give_up
    assert not any(kid.alive for kid in kids.values())
    assert all(kid.most_alive <= 1 for kid in kids.values())


@given(st.sampled_from(STRATEGIES), kinds, commands)
def test_a_tree_does_what_the_model_says(
    strategy: str, kinds: dict[str, str], script: list[tuple[str, str | float]]
) -> None:
    asyncio.run(compare(Model(strategy, kinds), script))


@given(kinds, commands)
def test_a_tree_with_a_backoff_does_what_the_model_says(
    kinds: dict[str, str], script: list[tuple[str, str | float]]
) -> None:
    asyncio.run(compare(Model("one_for_one", kinds, backoff_s=1.0), script))


slow_kids = st.fixed_dictionaries(
    {
        one: st.fixed_dictionaries(
            {
                "start_s": st.sampled_from([0.0, 0.0, 0.7]),
                "stop_s": st.sampled_from([0.0, 0.0, 0.6, 50.0]),
                "failing": st.lists(
                    st.sampled_from([None, None, "return", "ignore", ValueError("no")]), max_size=6
                ).map(lambda later: [None, *later]),
            }
        )
        for one in IDS
    }
)


async def endure(
    strategy: str,
    settings: dict[str, dict[str, object]],
    script: list[tuple[str, str | float]],
) -> None:
    """Nothing waits for anything here: commands come while starts, stops and backoffs run."""
    world = World()
    kids = {one: world.kid(one, **settings[one]) for one in IDS}
    tree = world.tree(
        [kid.spec(shutdown=3.0) for kid in kids.values()],
        strategy=strategy,
        max_restarts=8,
        max_seconds=60.0,
        backoff=Backoff(0.5, 1.0, jitter=0),
    )
    calls: list[asyncio.Task[str]] = []
    KINDS.clear()
    KINDS.update(dict.fromkeys(kids.values(), "permanent"))
    manual = False
    try:
        async with tree:
            for command, target in script:
                if isinstance(target, float):
                    await world.clock.sleep(target / 4)
                elif command in ("crash", "finish"):
                    order = kids[target].order
                    if kids[target].alive and order is not None and not order.done():
                        getattr(kids[target], command)()
                else:
                    manual = True
                    call = carry_out_anyhow(tree, kids[target], command)
                    calls.append(asyncio.ensure_future(call))
                await asyncio.sleep(0)
                for kid in kids.values():
                    assert kid.alive <= 1
            await world.clock.sleep(200)
            settled = states(tree)
            assert set(settled.values()) <= {"running", "stopped"}
            for one, state in settled.items():
                assert kids[one].alive == (state == "running")
            if not manual and not any("ignore" in kid["failing"] for kid in settings.values()):  # type: ignore[operator]  # a list
                assert settled == dict.fromkeys(IDS, "running")
    except RestartLimitReached as error:
        assert error.__cause__ is not None  # noqa: PT017 - giving up is one of the outcomes
    await asyncio.gather(*calls)
    await world.settle()
    assert not any(kid.alive for kid in kids.values())
    assert tree.abandoned == ()


async def carry_out_anyhow(tree: SupervisionTree, kid: Kid, command: str) -> str:
    try:
        return await carry_out(tree, kid, command)
    except Exception as error:  # noqa: BLE001 - a start that fails, a tree that stops: all are outcomes
        return repr(error)


@given(st.sampled_from(STRATEGIES), slow_kids, commands)
def test_whatever_happens_meanwhile_there_is_one_incarnation_and_an_end_to_everything(
    strategy: str,
    settings: dict[str, dict[str, object]],
    script: list[tuple[str, str | float]],
) -> None:
    asyncio.run(endure(strategy, settings, script))

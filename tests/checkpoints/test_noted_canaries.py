"""What a process takes over of the canary from the notes of the ones before it, and of metadata."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from made import path, record

from tinker_recovery.checkpoints.canary import Match, fingerprint_of
from tinker_recovery.checkpoints.prompt import PromptFacts, digest_of, prompt_of
from tinker_recovery.clock import Clock
from tinker_recovery.journal import Notes
from tinker_recovery.recovery.checkpoint_state import CheckpointState

PROMPT = prompt_of([1, 2, 3])
ABOUT = digest_of(PROMPT)
OWN, OTHER = (-1.0, -2.0), (-1.0, -3.0)


class World:
    """A journal with these notes, and what the reader was given of them."""

    def __init__(self, **noted: Any) -> None:
        empty: dict[str, Any] = {
            name: {} for name in ("pinned", "bad", "deletions", "sizes", "files")
        }
        self.notes = Notes(**{**empty, **noted})
        self.recalled: list[tuple[object, object]] = []
        self.spawned: list[Any] = []
        self.written: list[tuple[str, str]] = []
        self.collaborators: Any = SimpleNamespace(
            notebook=SimpleNamespace(notes=self._notes, note_prompt=self._note_prompt),
            reader=SimpleNamespace(metadata=SimpleNamespace(recall=self._recall)),
            clock=Clock(wall=lambda: 1e9),
            spawn=self.spawned.append,
        )

    async def _notes(self) -> Notes:
        return self.notes

    async def _note_prompt(self, lineage: str, facts: str) -> None:
        self.written.append((lineage, facts))

    def _recall(self, keeps: object, said: object) -> None:
        self.recalled.append((keeps, said))


async def test_what_is_noted_of_metadata_is_taken_over_and_the_notes_are_returned() -> None:
    metadata = {path("a", 3): '{"step": "3"}'}
    world = World(keeps_metadata="forgotten", metadata=metadata)
    assert await CheckpointState("run").read(world.collaborators) is world.notes
    assert world.recalled == [("forgotten", metadata)]


async def test_an_answer_that_was_noted_counts_if_it_is_one_to_the_runs_prompt() -> None:
    where, said = path("a", 5), fingerprint_of(OWN)
    for about, known_again in ((ABOUT, True), ("another", False)):
        known = CheckpointState("run", canary=PROMPT)
        world = World(canaries={where: said}, canary_prompts={where: about})
        await known.read(world.collaborators)
        known.learn_canaries([record(5)])
        assert known.expects(record(5)) is known_again
        verdicts = [known.compare_canary(record(5), [answer])[0] for answer in (OWN, OTHER)]
        told = [Match.SAME, Match.DIFFERENT]
        assert verdicts == (told if known_again else [Match.UNCLEAR, Match.UNCLEAR])


async def test_the_noise_that_an_earlier_process_measured_is_taken_over_for_its_own_run() -> None:
    facts = str(PromptFacts(ABOUT, 0.25))
    for lineage, noise in (("mine", 0.25), ("another", 0.0)):
        known = CheckpointState("run", lineage="mine", canary=PROMPT)
        await known.read(World(prompts={lineage: facts}).collaborators)
        assert known.canaries.noise == noise


async def test_a_prompt_of_the_first_batch_is_known_again_and_written_only_once_it_is_known() -> (
    None
):
    world = World(prompts={"mine": str(PromptFacts(ABOUT, 0.0, (1, 2, 3)))})
    known = CheckpointState("run", lineage="mine", canary="auto")
    known.write_prompt(world.collaborators)
    assert world.spawned == []
    await known.read(world.collaborators)
    facts = known.prompt_facts()
    assert facts is not None
    assert (facts.digest, facts.tokens) == (ABOUT, (1, 2, 3))
    known.write_prompt(world.collaborators)
    (write,) = world.spawned
    await write()
    assert world.written == [("mine", str(facts))]


def test_what_says_of_its_prompt_alone_has_no_answer() -> None:
    known = CheckpointState("run", canary=PROMPT)
    about = {"canary": None, "canary_about": PromptFacts(ABOUT, 0.0)}
    for by in ("user", "schedule"):
        known.learn_canaries([record(5, saved_by=by).model_copy(update=about)])
        assert not known.expects(record(5))

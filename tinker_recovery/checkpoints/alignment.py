"""Which step runs that belong together go back to: pure decisions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping


def common_steps(held: Iterable[Collection[int]]) -> list[int]:
    """The steps that each run has a usable checkpoint of, or can start over at; newest first."""
    common: set[int] | None = None
    for steps in held:
        common = set(steps) if common is None else common & set(steps)
    return sorted(common or (), reverse=True)


def ahead(start_steps: Mapping[str, int]) -> list[str]:
    """Which runs were brought back to a later step than another, and have to go back further."""
    lowest = min(start_steps.values(), default=0)
    return [name for name, step in start_steps.items() if step > lowest]

"""A request of ours is asked again a few times, with growing waits, and no library logs that."""

from __future__ import annotations

import subprocess
import sys

import anyio
import pytest

from tinker_recovery import StatusUnavailable
from tinker_recovery.service import retrying
from tinker_recovery.service.retrying import retried


async def test_it_is_asked_again_until_it_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def third(number: int) -> int:
        if number < 4:
            raise StatusUnavailable("not yet")
        return number

    monkeypatch.setattr(anyio, "sleep", sleep)
    assert await retried(third, tries=4, first_s=1.0, most_s=3.0) == 4
    assert [most / 2 <= each <= most for each, most in zip(slept, [1, 2, 3], strict=True)] == [
        True
    ] * 3


async def test_the_last_error_is_raised_and_any_other_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retrying, "waits", False)
    asked: list[int] = []

    async def fails(number: int) -> None:
        asked.append(number)
        raise StatusUnavailable(f"try {number}")

    async def wrong(number: int) -> None:
        raise ValueError(number)

    with pytest.raises(StatusUnavailable, match="try 3"):
        await retried(fails, tries=3, first_s=1.0, most_s=1.0)
    assert asked == [1, 2, 3]
    with pytest.raises(ValueError, match="1"):
        await retried(wrong, tries=3, first_s=1.0, most_s=1.0)


def test_a_users_own_set_up_of_stamina_is_none_of_our_business() -> None:
    code = "import sys, tinker_recovery.supervisor; sys.exit('stamina' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # noqa: S603 - our own code

"""What a few answers show about a service's restores."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinker_recovery.checkpoints.canary import Answer
from tinker_recovery.doctor.comparison import (
    Diagnosis,
    Observations,
    OptimizerFinding,
    Stand,
    diagnose,
)
from tinker_recovery.doctor.facts import CANNOT_TELL, restores

TOKENS = 64


class Service:
    """A service made of directions: one step of a live client adds ``step`` and the optimizer's
    part, ``moments``; answers are noisy."""

    def __init__(self, seed: int, *, asking: float = 0.0, stepping: float = 0.0) -> None:
        self._random = random.Random(seed)
        self.asking = asking
        self.stepping = stepping
        self.saved = self._draw(1.0)
        self.step = self._draw(1.0)
        self.moments = self._draw(1.0)

    def _draw(self, scale: float) -> Answer:
        return tuple(self._random.gauss(0, 1) * scale for _ in range(TOKENS))

    def _ask(self, weights: Answer) -> tuple[Answer, Answer]:
        return tuple(add(weights, self._draw(self.asking), 1.0) for _ in range(2))  # type: ignore[return-value]  # two of them

    def client(self, optimizer: float, weights_off: float = 0.0) -> Stand:
        """A client whose optimizer was restored to this share, and its weights with this error."""
        start = add(self.saved, self.step, weights_off)
        end = add(add(start, self.step, 1.0), self.moments, optimizer)
        end = add(end, self._draw(self.stepping), 1.0)
        return Stand(self._ask(start), self._ask(end))

    def observe(
        self,
        warm: tuple[float, float] = (1.0, 1.0),
        weights_off: tuple[float, float, float] = (0.0, 0.0, 0.0),
        live: float = 1.0,
    ) -> Diagnosis:
        one, other, cold = weights_off
        return diagnose(
            Observations(
                self.client(live),
                (self.client(warm[0], one), self.client(warm[1], other)),
                self.client(0.0, cold),
            )
        )


def add(one: Answer, other: Answer, share: float) -> Answer:
    # Nothing is added as nothing: exactly what was there.
    return tuple(a + b * share if share and b else a for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("warm", "weights_off", "finding", "words"),
    [
        ((1.0, 1.0), (0, 0, 0), OptimizerFinding.EXACT, "to the bit"),
        ((0.0, 0.0), (0, 0, 0), OptimizerFinding.COLD, "is not restored: the step"),
        ((0.0, 1.0), (0, 0, 0), OptimizerFinding.COLD, "is not restored: in one of two restores"),
        ((1.0, 0.0), (0, 0, 0), OptimizerFinding.COLD, "in one of two restores"),
        ((0.05, 0.05), (0, 0, 0), OptimizerFinding.COLD, "is not restored"),
        ((0.5, 0.5), (0, 0, 0), OptimizerFinding.INEXACT, "50% of the difference without it"),
        ((1.5, 1.5), (0, 0, 0), OptimizerFinding.INEXACT, "50%"),
        ((0.0, 0.6), (0, 0, 0), OptimizerFinding.COLD, "in one of two restores"),
        ((0.5, 0.9), (0, 0, 0), OptimizerFinding.INCONCLUSIVE, "Inconclusive"),
        (
            (1.0, 1.0),
            (0.01, 0, 0),
            OptimizerFinding.WEIGHTS_CHANGED,
            "The weights are not restored: they differ by",
        ),
        (
            (1.0, 1.0),
            (0.01, 0.01, 0.01),
            OptimizerFinding.WEIGHTS_CHANGED,
            "The weights are not restored",
        ),
        (
            (1.0, 1.0),
            (0, 0, 0.01),
            OptimizerFinding.WEIGHTS_CHANGED,
            "The weights are not restored",
        ),
        (
            (0.0, 0.0),
            (0.01, 0.01, 0.01),
            OptimizerFinding.WEIGHTS_CHANGED,
            "The weights are not restored",
        ),
    ],
)
@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_each_kind_of_restore_is_told_apart_with_and_without_noise(
    warm: tuple[float, float],
    weights_off: tuple[float, float, float],
    finding: OptimizerFinding,
    words: str,
    noise: float,
) -> None:
    found = Service(1, asking=noise, stepping=noise).observe(warm, weights_off)
    if noise and finding is OptimizerFinding.EXACT:
        finding, words = OptimizerFinding.WITHIN_NOISE, "as exact as the service is"
    assert found.finding is finding
    assert words in found.words
    real = finding in (OptimizerFinding.EXACT, OptimizerFinding.WITHIN_NOISE)
    assert found.finding.real == (None if finding is OptimizerFinding.INCONCLUSIVE else real)


def test_where_live_and_weights_only_do_not_differ_it_is_inconclusive() -> None:
    for service in (Service(1), Service(1, asking=0.5), Service(1, stepping=1.0)):
        quiet = service.asking == service.stepping == 0
        found = service.observe(warm=(0.0, 0.0), live=0.0 if quiet else 1.0)
        assert found.finding in (
            OptimizerFinding.INCONCLUSIVE,
            OptimizerFinding.INEXACT,
            OptimizerFinding.COLD,
        )
        assert found.finding.real is not True
        if quiet:
            assert found.finding is OptimizerFinding.INCONCLUSIVE
            assert "more --steps" in found.words


def test_answers_that_are_no_numbers_are_never_called_a_restore_that_is_real() -> None:
    service = Service(1)
    stands = [service.client(1.0) for _ in range(3)] + [service.client(0.0)]
    nans = (math.nan,) * TOKENS
    for spoilt in range(4):
        for when in ("before", "after"):
            some = list(stands)
            good = stands[spoilt]
            some[spoilt] = (
                Stand((nans, nans), good.after)
                if when == "before"
                else Stand(good.before, (nans, nans))
            )
            live, one, other, cold = some
            assert diagnose(Observations(live, (one, other), cold)).finding.real is not True


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_a_service_that_restores_everything_is_never_called_wrong_however_noisy(
    seed: int, asking: float, stepping: float
) -> None:
    """Noise up to a hundredth of the optimizer's part."""
    found = Service(seed, asking=asking / 100, stepping=stepping / 100).observe()
    assert found.finding.real is not False, found


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1), st.sampled_from([0, 1, 2]))
def test_a_cold_restore_is_never_called_real_however_noisy(
    seed: int, asking: float, stepping: float, which: int
) -> None:
    warm = ((0.0, 1.0), (1.0, 0.0), (0.0, 0.0))[which]
    found = Service(seed, asking=asking, stepping=stepping).observe(warm)
    assert found.finding.real is not True, found
    if max(asking, stepping) < 0.01:
        assert found.finding is OptimizerFinding.COLD


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.floats(1e-6, 3))
def test_without_noise_the_smallest_difference_counts(seed: int, off: float) -> None:
    assert Service(seed).observe(warm=(1.0, 1.0 + off)).finding.real is False
    changed = Service(seed).observe(weights_off=(off, 0.0, 0.0))
    assert changed.finding is OptimizerFinding.WEIGHTS_CHANGED


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.floats(1e-6, 1e6), st.sampled_from([(1, 1), (0, 0), (0.5, 0.5)]))
def test_the_scale_of_the_answers_does_not_matter(
    seed: int, scale: float, warm: tuple[float, float]
) -> None:
    plain, scaled = Service(seed), Service(seed)
    for name in ("saved", "step", "moments"):
        setattr(scaled, name, tuple(each * scale for each in getattr(plain, name)))
    assert plain.observe(warm).finding is scaled.observe(warm).finding


def test_answers_that_are_no_numbers_say_nothing_of_weights_or_optimizer() -> None:
    broken = (math.nan,) * TOKENS
    stand = Stand((broken, broken), (broken, broken))
    found = diagnose(Observations(stand, (stand, stand), stand))
    assert found.finding is OptimizerFinding.INCONCLUSIVE
    assert [each.found for each in restores(found)] == [CANNOT_TELL, CANNOT_TELL]
    assert all("as far as answers tell" not in each.promise for each in restores(found))

"""The losses of reinforcement learning, as functions of a datum's logprobs.

Each is a sum over tokens. With ``p`` the logprob of a token, ``q`` the one it was sampled with,
``a`` its advantage and ``r = exp(p - q)``:

- ``importance_sampling``: ``-r * a``.
- ``ppo``: ``-min(r * a, clip(r) * a)``.
- ``cispo``: ``-clip(r) * a * p``, where no gradient goes through ``clip(r)``.
- ``dro``: ``-(a * p - beta / 2 * (p - q)**2)``.
- ``gspo``: as ``ppo``, with ``r`` the exponential of the mean of ``p - q`` over the tokens that
  ``sequence_ratio_mask`` marks; each token's gradient goes through its own ``p`` alone.

``clip`` is to ``clip_low_threshold`` and ``clip_high_threshold``: by default 0.8 and 1.2 for
``ppo``, 0.0 and 4.0 for ``cispo``, which is clipped above only. Both are what the service
documents. ``beta`` is 0.05 by default, which is the service's example; what it takes without one
is not documented. What ``gspo`` takes is not known here: its thresholds have to be given. All are
set by ``loss_fn_config``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tinker_recovery.testing._model import Floats

Loss = Callable[[Floats], tuple[float, Floats]]
"""The loss of a datum's logprobs, and the negated gradient by each."""

_CONFIG: dict[str, dict[str, float | None]] = {
    "importance_sampling": {},
    "ppo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
    "cispo": {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0},
    "dro": {"beta": 0.05},
    "gspo": {"clip_low_threshold": None, "clip_high_threshold": None},
}
"""What each takes from ``loss_fn_config``, with its default; None if it has to be given."""

_INPUTS = ("logprobs", "advantages")

OFFERED = ("cross_entropy", *_CONFIG)
"""The losses offered. Not ``stable_reinforce``, which is in alpha and needs what the service
records of each sample; nor ``custom``, which needs a loss that was uploaded as a graph."""


def inputs_of(name: str) -> tuple[str, ...]:
    """The inputs of a loss besides targets and weights, in the order of :func:`loss_of`."""
    return (*_INPUTS, "sequence_ratio_mask") if name == "gspo" else _INPUTS


def _configured(name: str, config: Mapping[str, float]) -> dict[str, float]:
    """The settings of a loss; raises ValueError if one does not belong to it, or is missing."""
    defaults = _CONFIG[name]
    for key in config:
        if key not in defaults:
            allowed = ", ".join(defaults) or "none"
            raise ValueError(f"loss_fn_config[{key!r}] does not go with {name!r}: {allowed}")
    given = {key: config.get(key, default) for key, default in defaults.items()}
    if missing := [key for key, value in given.items() if value is None]:
        raise ValueError(f"{name!r} needs loss_fn_config: {', '.join(missing)}")
    return {key: value for key, value in given.items() if value is not None}


def loss_of(
    name: str,
    config: Mapping[str, float],
    sampled: Floats,
    advantages: Floats,
    mask: Floats | None = None,
) -> Loss:
    """The loss of one datum.

    Args:
        name: One of ``OFFERED``, but not ``cross_entropy``.
        config: Its ``loss_fn_config``.
        sampled: The logprobs that the tokens were sampled with.
        advantages: The advantage of each token.
        mask: For ``gspo``: not 0 for each token of the sequence.

    Raises:
        ValueError: A setting does not belong to this loss, or is missing; or the mask is empty.
    """
    given = _configured(name, config)
    if mask is not None and not mask.any():
        raise ValueError("sequence_ratio_mask marks no token")

    def clipped(ratios: Floats) -> Floats:
        low, high = (np.float32(given[f"clip_{end}_threshold"]) for end in ("low", "high"))
        return np.clip(ratios, low, high)

    def importance_sampling(logprobs: Floats) -> tuple[Floats, Floats]:
        gains = np.exp(logprobs - sampled) * advantages
        return gains, gains

    def ppo(logprobs: Floats) -> tuple[Floats, Floats]:
        apart = logprobs - sampled
        ratios = np.exp(apart if mask is None else np.full_like(apart, apart[mask != 0].mean()))
        free, held = ratios * advantages, clipped(ratios) * advantages
        # Where the clipped one is less, it is constant.
        return np.minimum(free, held), np.where(free <= held, free, np.float32(0))

    def cispo(logprobs: Floats) -> tuple[Floats, Floats]:
        factors = clipped(np.exp(logprobs - sampled)) * advantages
        return factors * logprobs, factors

    def dro(logprobs: Floats) -> tuple[Floats, Floats]:
        beta, apart = np.float32(given["beta"]), logprobs - sampled
        gains = advantages * logprobs - beta / np.float32(2) * apart * apart
        return gains, advantages - beta * apart

    gain = {
        "importance_sampling": importance_sampling,
        "ppo": ppo,
        "cispo": cispo,
        "dro": dro,
        "gspo": ppo,
    }[name]

    def loss(logprobs: Floats) -> tuple[float, Floats]:
        gains, slopes = gain(logprobs)
        return -float(gains.sum()), slopes.astype(np.float32)

    return loss

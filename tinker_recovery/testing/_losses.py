"""The losses of reinforcement learning, as functions of a datum's logprobs.

Each is a sum over tokens. With ``p`` the logprob of a token, ``q`` the one it was sampled with,
``a`` its advantage and ``r = exp(p - q)``:

- ``importance_sampling``: ``-r * a``.
- ``ppo``: ``-min(r * a, clip(r) * a)``.
- ``cispo``: ``-clip(r) * a * p``, where no gradient goes through ``clip(r)``.
- ``dro``: ``-(a * p - beta / 2 * (p - q)**2)``.

``clip`` is to ``clip_low_threshold`` and ``clip_high_threshold``: by default 0.8 and 1.2 for
``ppo``, 0.0 and 4.0 for ``cispo``, which is clipped above only. Both are what the service
documents. ``beta`` is 0.05 by default, which is the service's example; what it takes without one
is not documented. All are set by ``loss_fn_config``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tinker_recovery.testing._model import Floats

Loss = Callable[[Floats], tuple[float, Floats]]
"""The loss of a datum's logprobs, and the negated gradient by each."""

_CONFIG: dict[str, dict[str, float]] = {
    "importance_sampling": {},
    "ppo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
    "cispo": {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0},
    "dro": {"beta": 0.05},
}

OFFERED = ("cross_entropy", *_CONFIG)
"""The losses offered. Not ``gspo`` and ``stable_reinforce``, whose definition at the service is not
known here; nor ``custom``, which needs a loss that was uploaded as a graph."""


def loss_of(name: str, config: Mapping[str, float], sampled: Floats, advantages: Floats) -> Loss:
    """The loss of one datum.

    Args:
        name: One of ``OFFERED``, but not ``cross_entropy``.
        config: Its ``loss_fn_config``.
        sampled: The logprobs that the tokens were sampled with.
        advantages: The advantage of each token.

    Raises:
        ValueError: A setting does not belong to this loss.
    """
    defaults = _CONFIG[name]
    for key in config:
        if key not in defaults:
            allowed = ", ".join(defaults) or "none"
            raise ValueError(f"loss_fn_config[{key!r}] does not go with {name!r}: {allowed}")
    given = {**defaults, **config}

    def clipped(ratios: Floats) -> Floats:
        low, high = given["clip_low_threshold"], given["clip_high_threshold"]
        return np.clip(ratios, np.float32(low), np.float32(high))

    def importance_sampling(logprobs: Floats) -> tuple[Floats, Floats]:
        gains = np.exp(logprobs - sampled) * advantages
        return gains, gains

    def ppo(logprobs: Floats) -> tuple[Floats, Floats]:
        ratios = np.exp(logprobs - sampled)
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
    }[name]

    def loss(logprobs: Floats) -> tuple[float, Floats]:
        gains, slopes = gain(logprobs)
        return -float(gains.sum()), slopes.astype(np.float32)

    return loss

"""The options of a local server, in this process or another, and the dialects made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypedDict, Unpack, cast, get_args

from tinker import types

DEFAULT_API_KEY = "tml-local-key"

Restart = Literal["corrupted", "unloaded", "rollback"]
"""What happens to existing runs, whose live weights are lost, when the server starts again:

- ``corrupted``: they are reported as corrupted, and every request of theirs fails with "model ...
  is not loaded".
- ``unloaded``: they are not; every request of theirs is answered HTTP 400, "model ... is not
  loaded" (as SkyRL does).
- ``rollback``: they silently go back to their last checkpoint, or their beginning, and continue.
  Requests from before the restart have failed (as in TuFT). After an outage as well, unless that
  says otherwise.
"""

Metadata = Literal["kept", "forgotten", "refused"]
"""What becomes of a save's ``user_metadata``:

- ``kept``: listed with the checkpoint.
- ``forgotten``: the save succeeds, the listing has none.
- ``refused``: HTTP 422 to the extra field. The request's seq_id is then missing for good, and every
  later request of that client fails: "Sequence conflict: expected 11, got 12".
"""

Dialect = Literal[
    "hosted",
    "forgets_metadata",
    "refuses_metadata",
    "rolls_back",
    "ignores_seed",
    "noisy",
    "bare",
    "strict",
    "server_category",
]
"""A kind of service; :data:`DIALECTS` has its options, and where it was seen."""


class _Plain(TypedDict, total=False):
    """Every option but the dialect."""

    api_key: str
    jwt: bool
    long_poll_s: float
    step_s: float
    save_s: float
    load_s: float
    restart: Restart
    cold_optimizer: bool
    lenient: bool
    metadata: Metadata
    seed_ignored: bool
    answer_noise: float
    gradient_noise: float
    chance: int
    missing: tuple[str, ...]
    sizes: bool
    weights_required: bool
    vocabulary: int | None
    server_category: bool
    heartbeat_limit_s: float | None
    created_skew_s: float
    created_jitter_s: float
    listing_delay_s: float
    flags: Mapping[str, object]
    sampling_seed: int | None


class Options(_Plain, total=False):
    """The options by name.

    Attributes:
        dialect: The kind of service: what the other options are by default.
        api_key: The key clients have to send.
        jwt: Whether clients have to exchange the key for a token, as at the hosted service.
        long_poll_s: Seconds that a poll waits for a result before it answers try_again.
        step_s: Seconds that each forward_backward takes.
        save_s: Seconds that each save takes.
        load_s: Seconds that each load of a checkpoint takes.
        restart: What happens to runs from before a restart on the same folder.
        cold_optimizer: Whether every load with optimizer silently leaves the moments at zero.
        lenient: Whether loads ignore checksums, so that a flipped bit or a NaN loads silently. What
            cannot be parsed still fails to load.
        metadata: What becomes of a save's ``user_metadata``.
        seed_ignored: Whether the service draws each new run's seed itself.
        answer_noise: Standard deviation of the noise on each logprob that a forward pass answers.
        gradient_noise: Standard deviation of the relative noise on each gradient.
        chance: Seed of the service's own noise and seeds: the n-th run of a new service begins
            alike whenever this is.
        missing: Routes that answer 404, by the names in ``stats.by_route``.
        sizes: Whether checkpoints are listed with their size.
        weights_required: Whether cross_entropy without ``weights`` is a user error.
        vocabulary: Tokens from here on are a user error; None takes any, modulo the model's own.
        server_category: Whether every failure that is the user's, a damaged or missing checkpoint
            among them, has the category ``server``.
        heartbeat_limit_s: Seconds without a heartbeat after which a session ends: what it had
            queued is dropped, every request of its is answered 410, and a search shows it without
            a status. The time that the service is down does not count, and the sessions of
            ``add_runs`` need none. None for no limit.
        created_skew_s: Seconds that ``created_at`` of every session is ahead of ``wall``, or, below
            0, behind it.
        created_jitter_s: The most seconds that it is off besides, ahead or behind, for each session
            anew. Searches order sessions by ``created_at``.
        listing_delay_s: Seconds until a new session or checkpoint is in what lists and searches
            show. All else knows it at once.
        flags: What the server tells each client to do, by the names of the fields of the SDK's
            ``ClientConfigResponse`` and ``ClientDynamicConfigResponse``:
            ``sample_use_retrieve_futures``, ``sample_cancel_enabled`` or
            ``sample_join_sampling_session``, for example. What is not named is as the SDK has it.
        sampling_seed: The seed of a sampler's first request for a prompt that gives no seed, and
            one more for each after it, so that a loop that samples can be compared with another.
            None for seeds drawn at random, as the hosted service does even where one is given.
    """

    dialect: Dialect


DIALECTS: dict[Dialect, _Plain] = {
    # The SDK's types and public tests.
    "hosted": {},
    # A third-party server, seen running: saves succeed, the listing has no user_metadata.
    "forgets_metadata": {"metadata": "forgotten"},
    # Another: 422 to the extra field; "Sequence conflict: expected 11, got 12" from there on.
    "refuses_metadata": {"metadata": "refused"},
    # Killed and back in 4 s: at its last checkpoint, not corrupted, the same client carries on.
    "rolls_back": {"restart": "rollback"},
    # Two fresh runs of one seed answer the first forward alike and differ after the first update.
    "ignores_seed": {"seed_ignored": True},
    # The vendor's live suite allows 0.05 on the summed loss of a short prompt, same weights.
    "noisy": {"answer_noise": 1e-3},
    # finish and the export may be 404, search is experimental, size_bytes is optional.
    "bare": {
        "missing": (
            "finish",
            "search_sessions",
            "save_weights_external",
            "external_weights_urls",
        ),
        "sizes": False,
    },
    # cross_entropy may demand weights; vocabularies may be as small as 256.
    "strict": {"weights_required": True, "vocabulary": 256},
    # "Error while deserializing header" and "Adapter ... not found", category server, each time.
    "server_category": {"server_category": True},
}
"""What makes each dialect. A single option can be given with a dialect, and counts more."""


_FLAGS = {
    *types.ClientConfigResponse.model_fields,
    *types.ClientDynamicConfigResponse.model_fields,
} - {"pjwt_auth_enabled", "custom_loss_server_side"}  # jwt says the one; the other is not offered

_NOT_NEGATIVE = (
    "long_poll_s",
    "step_s",
    "save_s",
    "load_s",
    "answer_noise",
    "gradient_noise",
    "created_jitter_s",
    "listing_delay_s",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """:class:`Options` with their defaults; raises ValueError for one out of its range."""

    api_key: str = DEFAULT_API_KEY
    jwt: bool = False
    long_poll_s: float = 5.0
    step_s: float = 0.0
    save_s: float = 0.0
    load_s: float = 0.0
    restart: Restart = "corrupted"
    cold_optimizer: bool = False
    lenient: bool = False
    metadata: Metadata = "kept"
    seed_ignored: bool = False
    answer_noise: float = 0.0
    gradient_noise: float = 0.0
    chance: int = 0
    missing: tuple[str, ...] = ()
    sizes: bool = True
    weights_required: bool = False
    vocabulary: int | None = None
    server_category: bool = False
    heartbeat_limit_s: float | None = None
    created_skew_s: float = 0.0
    created_jitter_s: float = 0.0
    listing_delay_s: float = 0.0
    flags: Mapping[str, object] = field(default_factory=dict)
    sampling_seed: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("restart", get_args(Restart)), ("metadata", get_args(Metadata))):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not allowed: {', '.join(allowed)}"
                )
        for name in _NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)!r} is not allowed: 0 or more")
        limit_s = self.heartbeat_limit_s
        if limit_s is not None and not 0 < limit_s < math.inf:
            raise ValueError(
                f"heartbeat_limit_s={limit_s!r} is not allowed: more than 0, or None for no limit"
            )
        for name in self.flags:
            if name not in _FLAGS:
                raise ValueError(f"flags={name!r} is not allowed: {', '.join(sorted(_FLAGS))}")
        if not math.isfinite(self.created_skew_s):
            raise ValueError(
                f"created_skew_s={self.created_skew_s!r} is not allowed: a number of seconds"
            )

    @classmethod
    def of(cls, **options: Unpack[Options]) -> ServerOptions:
        """A dialect's options, changed by those given.

        Raises:
            ValueError: There is no such dialect, or an option is out of its range.
        """
        dialect = options.pop("dialect", "hosted")
        if dialect not in DIALECTS:
            raise ValueError(f"dialect={dialect!r} is not allowed: {', '.join(DIALECTS)}")
        return cls(**cast("_Plain", {**DIALECTS[dialect], **options}))

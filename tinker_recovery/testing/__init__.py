"""A Tinker service for tests: the real protocol, a small real model, scripted faults.

The unmodified tinker SDK is its client. What moto is for AWS, this is for Tinker::

    async with LocalTinker() as server:
        server.poison(at_step=12)                  # the backend fails at step 12
        service = server.service()                 # a real tinker.ServiceClient
        ...
        assert server.run_state(run_id).steps == 30

- Faults: :mod:`tinker_recovery.testing.actions` lists everything that can go wrong; a
  :class:`FaultRule` says when, how often and for how long. :meth:`LocalTinker.outage` takes the
  whole service down, :meth:`LocalTinker.damage` damages a stored checkpoint.
- Sampling: sampling clients draw from the real model, and the same weights, prompt, ``seed`` and
  index give the same tokens; without a seed each request draws its own. Logprobs are the model's,
  whatever the temperature. ``LocalTinker.tokenizer`` makes texts of tokens without a network, and
  :meth:`LocalTokenizer.write_cache` lets the SDK's own ``get_tokenizer`` find it. Samplers
  live in memory, so none outlives a restart of the server, and :meth:`LocalTinker.expire_sampler`
  ends one.
- Services that differ: a :data:`Dialect`, ``LocalTinker(dialect="forgets_metadata")``;
  :data:`DIALECTS` says what each is.
- Sessions that end when their heartbeats stop, are dated wrongly, or are listed late:
  ``LocalTinker(heartbeat_limit_s=30, created_jitter_s=5, listing_delay_s=3)``; see
  :class:`Options`.
- A service that is far away: :class:`Network` puts round trips, handshakes, loss and jitter
  between it and its clients.
- Hypothesis draws faults with :mod:`tinker_recovery.testing.strategies`.
- As a pytest fixture: :mod:`tinker_recovery.testing.fixtures`.
- Exports: an export of a run has PEFT's names and config, and :func:`write_tiny_model` writes the
  tiny Llama or Qwen that it fits.
- :class:`LocalHub` is a model hub, for what publishes an export: ``huggingface_hub`` is its client.
- In a process of its own, which can be killed: :class:`LocalTinkerProcess`. From a shell:
  ``tinker-recovery serve``.
- What of the SDK's clients it does not serve, and why: ``docs/testing.md``.

Inside, ``_app`` has the routes and refuses what is not offered, and ``_model`` is the model with
its loss. Public are these names and modules; modules that begin with an underscore are not. Any
test may use this package. It imports nothing else of ``tinker_recovery``.
"""

try:
    from tinker_recovery.testing._server import LocalTinker, RequestStats, serve
except ModuleNotFoundError as error:
    missing = (error.name or "").partition(".")[0]
    if missing not in {"starlette", "uvicorn", "safetensors"}:
        raise
    raise ModuleNotFoundError(
        f'the local Tinker server needs {missing}: pip install "tinker-recovery[local]"',
        name=error.name,
    ) from error

from tinker_recovery.testing._checkpoints import StoredCheckpoint
from tinker_recovery.testing._damage import Damage
from tinker_recovery.testing._fault_book import FiredFault
from tinker_recovery.testing._faults import FaultRule
from tinker_recovery.testing._hub import HubCommit, HubRepository, LocalHub
from tinker_recovery.testing._network import Network
from tinker_recovery.testing._options import DIALECTS, Dialect, Options
from tinker_recovery.testing._peft import write_tiny_model
from tinker_recovery.testing._process import LocalTinkerProcess
from tinker_recovery.testing._runs import RunState
from tinker_recovery.testing._tokenizer import LocalTokenizer

__all__ = [
    "DIALECTS",
    "Damage",
    "Dialect",
    "FaultRule",
    "FiredFault",
    "HubCommit",
    "HubRepository",
    "LocalHub",
    "LocalTinker",
    "LocalTinkerProcess",
    "LocalTokenizer",
    "Network",
    "Options",
    "RequestStats",
    "RunState",
    "StoredCheckpoint",
    "serve",
    "write_tiny_model",
]

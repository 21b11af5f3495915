"""``tinker-recovery recover``: check that a checkpoint restores, and how to resume from it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinker_recovery.cli.common import (
    NO_SUCH_RUN,
    echo,
    journal_file,
    journal_option,
    refuse,
    refuse_because,
    run_argument,
)

if TYPE_CHECKING:
    from tinker_recovery.errors import UsageError
    from tinker_recovery.recovery.dry_run import Proof

NOT_RESTORED, WRONG = 1, 2


@click.command()
@run_argument
@click.option(
    "--checkpoint",
    metavar="PATH",
    help="This checkpoint of the run, tinker://RUN/weights/NAME. Default: as a recovery would.",
)
@click.option(
    "--lineage",
    metavar="ID",
    help="Which run of that name at the service, by (the beginning of) its lineage id.",
)
@click.option("--weights-only", is_flag=True, help="Leave out the optimizer state.")
@journal_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    *,
    run: str,
    checkpoint: str | None,
    lineage: str | None,
    weights_only: bool,
    journal: Path | None,
    as_json: bool,
) -> None:
    r"""Check that a run's checkpoint restores, and show how to resume from it.

    \b
        tinker-recovery recover sft-42
        tinker-recovery recover sft-42 --checkpoint tinker://RUN/weights/step-100 --weights-only

    RUN is a name, as in `tinker-recovery runs`, or a Tinker run id. The checkpoint is the newest
    valid one, or the one that the run's checkpoint_strategy selects. It is loaded with the
    optimizer state into a session of its own, its model is compared with the run's, and the session
    is finished, because no session can be handed to another process. The run, its checkpoints and
    the journal stay unchanged.

    This asks the service, so it needs an API key. It costs one session and no tokens. Whether the
    service really restores the optimizer is not checked here: see `tinker-recovery doctor`.

    A run that is being trained recovers by itself and is refused here, except with --checkpoint.
    Deadlines are settings, see `tinker-recovery config show`.

    \b
    Exit status: 0 if it was restored; 1 if it could not be, with the reason, or if there is no such
    run; 2 for a wrong option; 3 if the service or the journal could not be read.
    """
    from tinker import TinkerError

    from tinker_recovery.errors import (
        CheckpointError,
        DeadlineExceeded,
        JournalError,
        RunHeld,
        ServiceUnusable,
        StatusError,
        UsageError,
    )
    from tinker_recovery.journal.database import is_there
    from tinker_recovery.policy_settings import policy_from_settings
    from tinker_recovery.recovery.dry_run import NoSuchRun, prove
    from tinker_recovery.telemetry import redact

    try:
        policy = policy_from_settings()
        if weights_only:
            policy = policy.model_copy(update={"restore_optimizer": False})
        path = journal_file(journal)
        if journal is not None and not is_there(path):
            raise JournalError(f"there is no journal at {path}")  # noqa: TRY301 - like any other
        proof = asyncio.run(
            prove(run, journal=path, policy=policy, checkpoint=checkpoint, lineage=lineage)
        )
    except NoSuchRun as error:
        refuse(redact(str(error)), NO_SUCH_RUN)
    except UsageError as error:
        refuse(redact(f"{_asked_for(error)}{error}"), WRONG)
    except ServiceUnusable as error:
        refuse_because(error)
    except (StatusError, JournalError) as error:
        refuse_because(error)
    except (CheckpointError, DeadlineExceeded, RunHeld, TinkerError) as error:
        reason = redact(str(error) or repr(error))
        if as_json:
            echo(json.dumps({"restored": False, "run": run, "reason": reason}))
        refuse(f"not restored: {reason}", NOT_RESTORED)
    if as_json:
        echo(json.dumps(_as_json(proof)))
        return
    _show(proof)


def _asked_for(error: UsageError) -> str:
    """Why a key is asked for, if it is: commands that only look at the journal need none."""
    from tinker_recovery.errors import StatusError

    if isinstance(error.__context__, StatusError):
        return "recover has the service load the checkpoint, so it needs what training needs: "
    return ""


def _as_json(proof: Proof) -> dict[str, Any]:
    return {"restored": True, **asdict(proof), "resume_with": _resume_with(proof)}


def _show(proof: Proof) -> None:
    step = "its step is not known" if proof.step is None else f"step {proof.step}"
    what = "weights and optimizer" if proof.optimizer else "weights alone"
    for each in proof.passed_over:
        echo(f"skipped      {each}")
    echo(f"checkpoint   {proof.checkpoint}, {step}")
    echo(
        f"restored     {what}, as Tinker run {proof.run_id} ({proof.base_model}, "
        f"rank {proof.lora_rank}); its session is finished"
    )
    if proof.resumes:
        echo(f"resume       run the command of {proof.run!r} again: it starts from this checkpoint")
    echo(f"in code      {_resume_with(proof)}")


def _resume_with(proof: Proof) -> str:
    """The line of a program that resumes from the checkpoint."""
    path = json.dumps(proof.checkpoint)
    if proof.optimizer and proof.step is not None:
        return f"supervisor.attempts(from_checkpoint={path})"
    if proof.optimizer:
        return f"supervisor.attempts(from_checkpoint={path}, start_step=...)"
    return f"await recover_from_checkpoint({path}, restore_optimizer=False)"

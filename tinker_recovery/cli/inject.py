"""``tinker-recovery inject``: a fault for a local server that is running."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from tinker_recovery.cli.common import (
    check_local_server,
    echo,
    journal_file,
    journal_option,
    no_such_run,
    refuse,
    refuse_because,
)

if TYPE_CHECKING:
    from tinker_recovery.testing import FaultRule

FAILED = 1
"""Exit status: there is no such run, or the server did not take the fault."""

_LOCAL = ("127.0.0.1", "localhost", "::1")
_WITHIN_S = 10.0


def fault_of(text: str, hint: str) -> FaultRule:
    """The rule that a word describes, as ``--fault`` and ``inject`` take it.

    Raises:
        click.BadParameter: It describes none.
        click.UsageError: What the local server needs is not installed.
    """
    check_local_server()
    from tinker_recovery.testing import FaultRule

    try:
        return FaultRule.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=hint) from error


@click.command()
@click.argument("url")
@click.argument("fault")
@click.argument("run", required=False)
@click.option(
    "--api-key", default="tml-local-key", show_default=True, help="The key of that server."
)
@journal_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    *,
    url: str,
    fault: str,
    run: str | None,
    api_key: str,
    journal: Path | None,
    as_json: bool,
) -> None:
    r"""Strike a run at a local server with a fault, while it trains.

    URL is that of `tinker-recovery serve`, on this machine. FAULT is an action, with the request it
    strikes, the step, and further fields: ACTION[:REQUEST][@STEP][,FIELD=VALUE]. RUN is a name in
    the journal, and the fault strikes it wherever it is by then, also after a recovery; or a Tinker
    run id, for that one alone. Without RUN it strikes whichever comes first.

    \b
        tinker-recovery inject http://127.0.0.1:8010 poison sft-42
        tinker-recovery inject http://127.0.0.1:8010 poison@70,quiet=true
        tinker-recovery inject http://127.0.0.1:8010 gone:forward_backward@12
        tinker-recovery inject http://127.0.0.1:8010 status:optim_step,status=503,for_s=30

    Actions: poison, fail, hang, gone, rollback, fail_session, pause, nan_loss, cold_optimizer,
    wrong_restore, status, drop, slow, truncate, malformed, lost_save (what each does, and its
    fields: help(tinker_recovery.testing.actions), tinker_recovery.testing.FaultRule).

    Exit status: 0; 1 if there is no such run, or no local server that takes the fault; 2 for a
    wrong option or fault, or if what `serve` needs is not installed; 3 if the journal cannot be
    read.
    """
    if not _is_local(url):
        raise click.BadParameter(
            f"{url!r} is no server of this machine: http://127.0.0.1:PORT, as "
            "`tinker-recovery serve` prints it",
            param_hint="URL",
        )
    rule = fault_of(fault, "FAULT")
    if run is not None:
        by_id = ":" in run
        rule = replace(rule, run=run if by_id else _first_run(run, journal, url), follow=not by_id)
    _send(url, rule, api_key)
    if as_json:
        echo(json.dumps({"rule": asdict(rule)}))
        return
    echo(in_words(rule, run))


def in_words(rule: FaultRule, run: str | None = None) -> str:
    """What will strike, and when; ``run`` is what its user called the run."""
    request = "request" if rule.request is None else rule.request
    article = "an" if request[0] in "aeiou" else "a"
    at = f"{article} {request} at step {rule.at_step}"
    when = f"the next {request}" if rule.at_step is None else at
    of_which = f" of {run or rule.run}" if rule.run else ", of whichever run gets there first"
    if rule.follow:
        of_which += ", in whichever Tinker run it is by then"
    return f"{rule.action} strikes {when}{of_which}"


def _is_local(url: str) -> bool:
    """Whether a URL is of this machine: no key goes elsewhere."""
    try:
        return urlsplit(url).hostname in _LOCAL
    except ValueError:
        return False


def _first_run(run: str, journal: Path | None, url: str) -> str:
    """The Tinker run that the one in which a run of this name lives now goes back to."""
    from tinker_recovery.errors import JournalError
    from tinker_recovery.journal.reading import read_run
    from tinker_recovery.telemetry.redaction import split_userinfo

    path, service = journal_file(journal), split_userinfo(url)[0].rstrip("/")
    try:
        view = read_run(path, run, service=service)
        if view is None:
            no_such_run(path, run, service)
    except JournalError as error:
        refuse_because(error)
    if not view.attempts:
        refuse(
            f"run {run!r} at {service} has no Tinker run yet (it is {view.display_state}): strike "
            "it once it trains, which `tinker-recovery show` then says, or leave RUN out",
            FAILED,
        )
    attempts = {each.run_id: each for each in view.attempts}
    first = view.attempts[-1]
    while first.parent is not None and (before := attempts.get(_run_of(first.parent))) is not None:
        first = before
    return first.run_id


def _run_of(path: str) -> str:
    return path.removeprefix("tinker://").partition("/")[0]


def _send(url: str, rule: FaultRule, api_key: str) -> None:
    import httpx

    try:
        reply = httpx.post(
            f"{url.rstrip('/')}/testing/faults",
            json=asdict(rule),
            headers={"X-API-Key": api_key},
            timeout=_WITHIN_S,
            trust_env=False,  # no proxy on the way to this machine
        )
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        refuse(f"no local Tinker server answers at {url}: {error}", FAILED)
    if not reply.is_success:
        refuse(
            f"the server at {url} does not take the fault: HTTP {reply.status_code} "
            f"{reply.text[:200]}",
            FAILED,
        )

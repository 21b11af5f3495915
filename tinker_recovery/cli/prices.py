"""``tinker-recovery prices``: what an organization's tokens were billed at, as a table."""

from __future__ import annotations

import json
import threading
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from tinker_recovery.cli.common import UNREADABLE, echo, leave, refuse, say_error
from tinker_recovery.cli.output import write_whole
from tinker_recovery.telemetry.text import counted

if TYPE_CHECKING:
    from tinker.types import BillingUsageEvent

_NONE = 1
_MOST_DAYS = 14


@click.command()
@click.option(
    "--days",
    default=_MOST_DAYS,
    show_default=True,
    type=click.IntRange(1, _MOST_DAYS),
    help="How far to look back; the newest rate of each model counts.",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE.toml",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the table; an existing file is replaced. Default: standard output.",
)
@click.option(
    "--timeout",
    "timeout_s",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Seconds to wait for the service.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as one JSON object.")
def command(*, days: int, output: Path | None, timeout_s: float, as_json: bool) -> None:
    r"""Write what each model's tokens were billed at, in USD for a million tokens.

    Reads the rates of your organization's usage, so the key in TINKER_API_KEY needs the admin or
    billing-admin role. A model that was not used in that time has no line; write one yourself.

    \b
    What to do with it:
        tinker-recovery prices -o prices.toml
        tinker-recovery show RUN --prices prices.toml
        export TINKER_RECOVERY_PRICES=prices.toml    # or prices= in the policy

    Exit status: 0; 1 if the usage has no rates; 2 for a wrong option; 3 if the service could not be
    asked, or does not let this key read them, or the file cannot be written.
    """
    from tinker_recovery.telemetry import redact

    try:
        table = rates(_usage(days, timeout_s))
    except TimeoutError:
        _give_up(f"the service did not answer within {timeout_s:g} s; see --timeout")
    except Exception as error:  # noqa: BLE001 - whatever the SDK raises, there are no rates
        _give_up(
            f"the usage could not be read: {redact(str(error))}\nIt needs a key with the admin or "
            "billing-admin role in TINKER_API_KEY. Without one, write the table by hand: see "
            "docs/cost.md"
        )
    if not table:
        refuse(f"the usage of the last {days} days has no rates", _NONE)
    text = as_toml(table)
    if output is not None:
        try:
            write_whole(output, text)
        except OSError as error:
            refuse(f"{output} cannot be written: {error.strerror or error}; choose another -o")
    if as_json:
        echo(json.dumps(table))
    else:
        echo(text.rstrip() if output is None else f"wrote {output}: {counted(len(table), 'model')}")
    leave(0)


def _give_up(why: str) -> NoReturn:
    say_error(why)
    leave(UNREADABLE)


def _usage(days: int, timeout_s: float) -> list[BillingUsageEvent]:
    import tinker

    from tinker_recovery.service import sdk_at_exit

    sdk_at_exit.apply()
    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    found: Future[list[BillingUsageEvent]] = Future()

    def ask() -> None:
        try:
            asked = tinker.AdminClient().get_billing_usage(end - timedelta(days=days), end)
            found.set_result(asked.result().data)
        except BaseException as error:  # noqa: BLE001 - raised by result()
            found.set_exception(error)

    # Making the client asks the service as well, and tries for minutes.
    threading.Thread(target=ask, daemon=True).start()
    return found.result(timeout=timeout_s)


def rates(events: list[BillingUsageEvent]) -> dict[str, dict[str, float]]:
    """The newest rate of each model and kind, in USD for a million tokens."""
    table: dict[str, dict[str, float]] = {}
    for event in sorted(events, key=lambda each: each.bucket_start):
        rate = event.effective_rate_usd_per_million_tokens
        match event.event_info.type:
            case "training":
                kind = "trained"
            case "sampling_prefill":
                kind = "cached" if event.event_info.cached else "prompt"
            case "sampling_sample":
                kind = "sampled"
            case _:
                continue
        if rate is not None and event.base_model:
            table.setdefault(event.base_model, {})[kind] = rate
    return table


def as_toml(table: dict[str, dict[str, float]]) -> str:
    """The table as a TOML file."""
    parts = ["# USD for a million tokens, as billed. See docs/cost.md of tinker-recovery."]
    for model, prices in sorted(table.items()):
        parts.append(f"\n[{json.dumps(model)}]")
        parts += [f"{kind} = {price!r}" for kind, price in prices.items()]
    return "\n".join(parts) + "\n"

"""What a failed request of the client says about the run, by the request it was."""

from __future__ import annotations

import httpx
import pytest
import tinker

from tinker_recovery.faults import Kind
from tinker_recovery.run.judging import MODEL_CALLS, judge_request
from tinker_recovery.service.client import CUSTOM_LOSS

SAMPLER = "save_weights_for_sampler"


def _refused(status: int) -> tinker.APIStatusError:
    request = httpx.Request("POST", "http://127.0.0.1/api/v1/any")
    kind = tinker.NotFoundError if status == 404 else tinker.APIStatusError
    return kind("refused", response=httpx.Response(status, request=request), body=None)


@pytest.mark.parametrize("operation", [*sorted(MODEL_CALLS), SAMPLER])
def test_a_result_that_cannot_be_decoded_breaks_the_client_whatever_was_asked(
    operation: str,
) -> None:
    rule, elsewhere = judge_request(operation, ValueError("not JSON"))
    assert rule is not None
    assert (rule.kind, elsewhere) == (Kind.REQUEST_BROKE, False)


def test_what_a_custom_loss_raises_is_the_users_own() -> None:
    assert judge_request(CUSTOM_LOSS, ValueError("the loss")) == (None, False)


@pytest.mark.parametrize("operation", [CUSTOM_LOSS, SAMPLER, "optim_step"])
@pytest.mark.parametrize("status", [401, 402, 403, 422])
def test_a_refused_request_leaves_a_gap_whatever_was_asked(operation: str, status: int) -> None:
    rule, elsewhere = judge_request(operation, _refused(status))
    assert rule is not None
    assert (rule.breaks_client, elsewhere) == (True, False)


@pytest.mark.parametrize("operation", [*sorted(MODEL_CALLS), SAMPLER])
def test_a_404_means_that_the_model_is_gone_only_from_a_request_about_it(operation: str) -> None:
    rule, elsewhere = judge_request(operation, _refused(404))
    assert rule is not None
    assert (rule.kind is Kind.MODEL_MISSING) == (operation in MODEL_CALLS)
    assert elsewhere == (operation not in MODEL_CALLS)

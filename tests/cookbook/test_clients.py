"""What a recipe gets where it asks the SDK for clients; see test_recipes.py for whole recipes."""

from __future__ import annotations

from contextlib import ExitStack
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tinker

from tinker_recovery.cookbook.clients import SEAT, RecipeService, seated


@pytest.mark.parametrize("first_out", [0, 1])
def test_of_two_recipes_of_one_module_the_second_stays_supervised_when_the_first_ends(
    first_out: int,
) -> None:
    """It asks for clients again after each recovery."""
    module: Any = ModuleType("of_a_recipe")
    module.tinker, module.ml_log = tinker, ModuleType("of_its_logs")
    module.ml_log.setup_logging = SimpleNamespace
    before = dict(vars(module))
    seat: Any = object()
    both = [ExitStack(), ExitStack()]
    for each in both:
        each.enter_context(seated(module))
    both.pop(first_out).close()
    token = SEAT.set(seat)
    try:
        assert type(module.tinker.ServiceClient()) is RecipeService
    finally:
        SEAT.reset(token)
    both.pop().close()
    assert vars(module) == before

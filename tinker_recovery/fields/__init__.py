"""What policies are made of: models that cannot be changed, and the kinds of values in them."""

from __future__ import annotations

import operator
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from tinker_recovery.fields.errors import in_words

__all__ = ["Frozen", "Number", "Seconds", "Switch", "Whole"]


def _whole(value: object) -> object:
    # numpy's whole numbers count as such; True, which Python would count with, does not.
    if isinstance(value, bool):
        return value
    try:
        return operator.index(value)  # type: ignore[arg-type]  # what has none is refused below
    except TypeError:
        return value


Whole = Annotated[int, Field(strict=True), BeforeValidator(_whole)]
"""A whole number: neither true or false, nor text, nor a float."""

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A finite number: neither true or false, nor text."""

Switch = Annotated[bool, Field(strict=True)]
"""True or False: neither a number nor text."""

Seconds = Annotated[Number, Field(gt=0)]
"""A duration in seconds: finite and above zero."""


class Frozen(BaseModel):
    """A model that cannot be changed, and takes no field that it does not know."""

    # Defaults are validated too, so that one that breaks its own rule is found in tests.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="wrap")
    @classmethod
    def _refused_in_words(cls, given: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return read(given)
        except ValidationError as error:
            raise in_words(error, cls, Frozen.__subclasses__()) from None

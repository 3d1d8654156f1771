"""Everything that the tuner raises on purpose.

    AutotuneError
    ├── InputError           the user asked for something that cannot be (exit status 2)
    │   └── ClusterTooSmall  ... more nodes or devices than the cluster has
    ├── NodeCheckFailed      a node is not fit to be measured on (exit status 2)
    └── NodeLost             a node or its actor went away during a trial (the trial is retried)

Foreign exceptions are translated into these once, where they enter: pydantic's here, Ray's in
`autotune.placement`, torch's in `trainables.deepspeed_llm.failures`.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic

T = TypeVar("T")


class AutotuneError(Exception):
    """Base of every error that the tuner raises on purpose."""


class InputError(AutotuneError, ValueError):
    """Bad input, told in one sentence: what, the rule, the value."""


class ClusterTooSmall(InputError):
    """The request needs more than the cluster has."""


class NodeCheckFailed(AutotuneError):
    """A node failed the check before the first trial; the message names it."""


class NodeLost(AutotuneError):
    """A node (or the actor that owns it) went away while a trial was running on it."""


def validated(kind: type[T], values: Mapping[str, Any], *, what: str) -> T:
    """Build the dataclass `kind` from untrusted `values`.

    Raises InputError with the first problem as one sentence, for example
    ``model: hidden_size must be greater than or equal to 1, got 0``.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_python(dict(values))
    except pydantic.ValidationError as error:
        raise InputError(f"{what}: {_sentence(error)}") from None


def _sentence(error: pydantic.ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    field = ".".join(part for part in problem["loc"] if isinstance(part, str))
    match problem["type"]:
        case "missing" | "missing_argument" | "missing_keyword_only_argument":
            return f"{field} is missing"
        case "unexpected_keyword_argument" | "extra_forbidden":
            return f"unknown key {field}"
        case "value_error":
            return str(problem["ctx"]["error"])
    rule = problem["msg"].replace("Input should be", "must be").replace("Input must", "must")
    return f"{field} {rule}, got {problem['input']!r}"

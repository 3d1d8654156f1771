"""Everything that the tuner raises on purpose.

    AutotuneError
    ├── InputError           the user asked for something that cannot be (exit status 2)
    │   └── ClusterTooSmall  ... more nodes or devices than the cluster has
    ├── NodeCheckFailed      a node is not fit to be measured on (exit status 2)
    ├── RunDirectoryFailed   the run directory cannot be written any more (status 130: resumable)
    ├── NodesGone            the cluster has had too few nodes for too long (status 130: resumable)
    └── NodeLost             a node or its actor went away during a trial (the trial is retried)
        └── NodeOutOfMemory  ... because the node's main memory ran out (a result: out of memory)

Foreign exceptions are translated into these once, where they enter: pydantic's here, Ray's in
`autotune.on_ray`, torch's in `trainables.deepspeed_llm.failures`.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic

T = TypeVar("T")

_LONGEST_VALUE = 200


class AutotuneError(Exception):
    """Base of every error that the tuner raises on purpose."""


class InputError(AutotuneError, ValueError):
    """Bad input, told in one sentence: what, the rule, the value."""


class ClusterTooSmall(InputError):
    """The request needs more than the cluster has."""


class NodeCheckFailed(AutotuneError):
    """A node failed the check before the first trial; the message names it."""


class RunDirectoryFailed(AutotuneError):
    """The run directory cannot be written any more; what is in it is whole."""


class NodesGone(AutotuneError):
    """Nodes went away and did not come back in time; the search can be resumed."""


class NodeLost(AutotuneError):
    """A node (or the actor that owns it) went away while a trial was running on it."""


class NodeOutOfMemory(NodeLost):
    """Ray's memory monitor ended a node's actor: the main memory of the node was nearly full."""


def validated(kind: type[T], values: Mapping[str, Any], *, what: str) -> T:
    """Build the dataclass `kind` from untrusted `values`.

    Raises InputError with the first problem as one sentence, for example
    ``model: hidden_size must be greater than or equal to 1, got 0``.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_python(dict(values))
    except pydantic.ValidationError as error:
        raise InputError(f"{what}: {first_problem(error)}") from None


def first_problem(error: pydantic.ValidationError) -> str:
    """The first problem in one sentence: the field, the rule and the value."""
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
    return f"{field} {rule}, got {shown(problem['input'])}"


def first_line(error: BaseException) -> str:
    """What a foreign exception says, in one line; its type where it says nothing."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def shown(value: object) -> str:
    """The value as a sentence shows it: short, on one line."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more than 4,300 digits
        return "a number that is too long to be shown"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."

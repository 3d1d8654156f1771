"""The exceptions that the tuner raises on purpose.

    AutotuneError
    ├── InputError           the user's input is invalid (exit status 2)
    │   └── ClusterTooSmall  ... more nodes or devices than the cluster has
    ├── NothingFits          no layout is predicted to fit (exit status 3: nothing was started)
    ├── NodeCheckFailed      a node failed the check before the first trial (exit status 2)
    ├── TracingFailed        the code of a rank failed while it was traced (exit status 2)
    ├── RunDirectoryReplaced another run is in the place of the run directory (exit status 2)
    ├── Resumable            the search ended early and can be resumed (status 130)
    │   ├── RunDirectoryFailed    ... as the run directory cannot be written any more
    │   ├── TemporaryFilesFailed  ... as temporary files cannot be written any more
    │   ├── NodesGone             ... as nodes were missing for longer than allowed
    │   └── HeadGone              ... as the head of the Ray cluster does not answer any more
    └── NodeLost             a node or its actor was lost during a trial (the trial is retried)
        └── NodeOutOfMemory  ... because the node's main memory ran out (the trial's outcome is oom)

Exceptions of libraries are converted to these where they are caught: pydantic's in
`autotune.inputs`, Ray's in `autotune.on_ray`, torch's in `trainables.deepspeed_llm.failures`.
"""

import contextlib
from collections.abc import Iterator


class AutotuneError(Exception):
    """Base of every error that the tuner raises on purpose."""


class InputError(AutotuneError, ValueError):
    """Invalid input. The message is one sentence: the field, the rule, the value.

    `field` is the Python name of the invalid field, and the message begins with it. The command
    line replaces that name by its own option.
    """

    def __init__(self, sentence: str, *, field: str | None = None) -> None:
        """`sentence` does not repeat the field: "must be 1, got 2" or "no such file: 'x'"."""
        self.field = field
        joint = " " if sentence.startswith("must ") else ": "
        super().__init__(sentence if field is None else f"{field}{joint}{sentence}")

    def with_field_as(self, option: str) -> str:
        """The message with `option` instead of the field's name."""
        return str(self) if self.field is None else f"{option}{str(self)[len(self.field) :]}"


class ClusterTooSmall(InputError):
    """The request needs more than the cluster has."""


class NothingFits(AutotuneError):
    """No layout of the space is predicted to fit into memory; the message names what would."""


class NodeCheckFailed(AutotuneError):
    """A node failed the check before the first trial; the message names it."""


class TracingFailed(AutotuneError):
    """The code of a rank raised an exception while it was traced; the message is the exception."""


class Resumable(AutotuneError):
    """The search ended early; its finished trials are on record, and it can be resumed."""


class TemporaryFilesFailed(Resumable):
    """Temporary files cannot be written any more, for example because their disk is full."""


class HeadGone(Resumable):
    """The head of the Ray cluster does not answer any more."""


class RunDirectoryFailed(Resumable):
    """The run directory cannot be written any more; the files in it are complete."""


class RunDirectoryReplaced(AutotuneError):
    """Another run is in the place of the run directory; nothing was written into it."""


class NodesGone(Resumable):
    """Nodes were lost and did not come back in time; the search can be resumed."""


class NodeLost(AutotuneError):
    """A node, or the actor that holds it, was lost while a trial was running on it."""


class NodeOutOfMemory(NodeLost):
    """Ray's memory monitor killed a node's actor because the node's main memory was nearly full."""


@contextlib.contextmanager
def in_field(field: str) -> Iterator[None]:
    """Add the field to every InputError raised inside that names no field."""
    try:
        yield
    except InputError as error:
        if error.field is not None:
            raise
        raise type(error)(str(error), field=field) from None


LONGEST_VALUE = 100
"""A value that an error message shows is cut to this many characters."""
LONGEST_REASON = 300
"""So is the message of another library's exception, to this many."""


def shortened(text: str, longest: int = LONGEST_VALUE) -> str:
    """The text, cut in the middle where it is longer: a path keeps the name of its file."""
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 3]}...{text[-end:]}"


def message_of(error: BaseException) -> str:
    """An exception's message, shortened; its type where there is no message."""
    try:
        message = str(error).strip()
    except BaseException:  # the message is made by somebody else's code
        message = ""
    return shortened(message, LONGEST_REASON) or type(error).__name__


def first_line(error: BaseException) -> str:
    """First line of an exception's message, shortened; its type where there is no message."""
    return message_of(error).splitlines()[0]

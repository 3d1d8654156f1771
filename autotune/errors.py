"""Everything that the tuner raises on purpose.

    AutotuneError
    ├── InputError           the user asked for something that cannot be (exit status 2)
    │   └── ClusterTooSmall  ... more nodes or devices than the cluster has
    ├── NothingFits          no layout is predicted to fit (exit status 3: nothing was started)
    ├── NodeCheckFailed      a node is not fit to be measured on (exit status 2)
    ├── RunDirectoryFailed   the run directory cannot be written any more (status 130: resumable)
    ├── NodesGone            the cluster has had too few nodes for too long (status 130: resumable)
    └── NodeLost             a node or its actor went away during a trial (the trial is retried)
        └── NodeOutOfMemory  ... because the node's main memory ran out (a result: out of memory)

Foreign exceptions are translated into these once, where they enter: pydantic's in
`autotune.inputs`, Ray's in `autotune.on_ray`, torch's in `trainables.deepspeed_llm.failures`.
"""

import contextlib
from collections.abc import Iterator


class AutotuneError(Exception):
    """Base of every error that the tuner raises on purpose."""


class InputError(AutotuneError, ValueError):
    """Bad input in one sentence: what, the rule, the value.

    `field` is the field of a request that is at fault, by its name in Python, and the sentence
    begins with it. A command line puts its own option in the place of that name.
    """

    def __init__(self, sentence: str, *, field: str | None = None) -> None:
        """`sentence` does not repeat the field: "must be 1, got 2" or "no such file: 'x'"."""
        self.field = field
        joint = " " if sentence.startswith("must ") else ": "
        super().__init__(sentence if field is None else f"{field}{joint}{sentence}")

    def with_field_as(self, option: str) -> str:
        """The sentence with `option` in the place of the field's name."""
        return str(self) if self.field is None else f"{option}{str(self)[len(self.field) :]}"


class ClusterTooSmall(InputError):
    """The request needs more than the cluster has."""


class NothingFits(AutotuneError):
    """No layout of the space is predicted to fit into the memory; the message says what would."""


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


@contextlib.contextmanager
def in_field(field: str) -> Iterator[None]:
    """Name the field in every InputError raised inside that does not name one."""
    try:
        yield
    except InputError as error:
        if error.field is not None:
            raise
        raise type(error)(str(error), field=field) from None


def first_line(error: BaseException) -> str:
    """What a foreign exception says, in one line; its type where it says nothing."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__

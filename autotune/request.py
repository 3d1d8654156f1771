"""The user's request. The same request and the same results give the same search."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from autotune.cost.trainers import trainer_of
from autotune.errors import InputError
from autotune.inputs import Flag, PositiveFloat, PositiveInt, shown, validated
from autotune.layout import Layout
from autotune.search import SEARCHES
from autotune.space import SearchSpace
from autotune.trial.registry import (
    describe_configured,
    describe_trainable,
    trainable_names,
)
from autotune.trial.trainable import TrainableDescription, TrainableSetup

_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SET_FOR_EACH_RANK = frozenset(
    {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"}
    | {"MASTER_PORT", "DS_ACCELERATOR"}
)
# Variables by which the dynamic linker, Python and shells load code that a program does not name.
_LOADS_CODE = re.compile(r"(LD|DYLD|PYTHON).*|GCONV_PATH|BASH_ENV|ENV|PERL5.*|NODE_OPTIONS")
_HARMLESS = frozenset(
    {"PYTHONUNBUFFERED", "PYTHONHASHSEED", "PYTHONFAULTHANDLER", "PYTHONDONTWRITEBYTECODE"}
    | {"PYTHONUTF8", "PYTHONIOENCODING", "PYTHONMALLOC", "PYTHONTRACEMALLOC", "PYTHONDEVMODE"}
)


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid"})
class Request:
    """The request of one search. Resuming can only raise max_trials and gpu_hours."""

    space: SearchSpace
    """The search space, with the restrictions of the command line applied."""
    trainable: Annotated[str, Field(strict=True, min_length=1)]
    """Name of the trainable that runs the trials."""
    search: str
    """Name of the search algorithm."""
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0
    """Seed of the search, the weights and synthetic tokens."""
    max_trials: PositiveInt
    """No layout is explored after this many finished exploring trials."""
    gpu_hours: PositiveFloat | None = None
    """Device hours after which no trial is started; None: no limit."""
    training_gpu_hours: PositiveFloat | None = None
    """Device hours of the planned training run; None: a run of 20 tokens per parameter."""
    reduced_trials: Flag = True
    """Whether layouts are explored with fewer micro-batches per step where that is much cheaper."""
    prune: Flag = True
    """Whether a result rules out layouts that can only be slower, or need more memory."""
    stop_factor: Annotated[float, Field(strict=True, ge=1, le=1e9)] = 2.0
    """A trial whose steps take more than this many times the best step time is stopped."""
    trial_timeout_seconds: Annotated[float, Field(strict=True, gt=0, le=1e7)] = 600.0
    """A trial that takes longer ends as a timeout."""
    data: str | None = None
    """File or folder of training text; None: the sources of Python's library."""
    synthetic_data: Flag = False
    """Whether to train on random tokens instead of text."""
    trace_steps: Annotated[int, Field(strict=True, ge=0, lt=2**31)] = 0
    """Last steps of each confirming trial whose passes the ranks record; 0: none."""
    env: Mapping[str, str] = pydantic.Field(default_factory=dict)
    """Extra environment variables of the ranks."""
    runs: str | None = None
    """Path of recorded runs to replay; None: no replay."""
    command: Mapping[str, Any] | None = None
    """The training command that trials run; None: the trainable has its own training code."""
    simulated_trainer: Mapping[str, Any] | None = None
    """The trainer whose step times are simulated, as its file has it; None: that of predictions."""
    layouts: tuple[Layout, ...] | None = None
    """The only layouts to try, in the space or beside it; None: all of the space."""

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise ValueError(
                f"search must be one of {', '.join(SEARCHES)}, got {shown(self.search)}"
            )
        replays = self._is_installed and self.description.trains == "recorded"
        # A run can be read where its trainable is not installed: then nothing is known of it.
        runs_are_right = not self._is_installed or (self.runs is not None) == replays
        if not runs_are_right or (self.runs is not None and self.layouts is None):
            raise ValueError(
                "runs must be given to replay recorded runs and only then, with their layouts, got "
                f"trainable {self.trainable}, runs {shown(self.runs)} and "
                f"{len(self.layouts or ())} layouts"
            )
        if self.layouts == ():
            raise ValueError("layouts must have at least one layout, got none")
        if self._is_installed:
            runs_command = describe_trainable(self.trainable).read_command is not None
            if (self.command is not None) != runs_command:
                given = "none" if self.command is None else shown(self.command.get("argv"))
                raise ValueError(
                    "command must be given for a trainable that runs a training command and only "
                    f"then, got trainable {self.trainable} and {given}"
                )
        if self.simulated_trainer is not None:
            try:
                trainer_of(self.simulated_trainer)
            except InputError as error:
                raise ValueError(f"simulated_trainer: {error}") from None
            if self._is_installed and not describe_trainable(self.trainable).simulates_trainers:
                raise ValueError(
                    "simulated_trainer must be given for a trainable that simulates any trainer "
                    f"and only then, got trainable {self.trainable}"
                )
        if self.trace_steps and self._is_installed and not self.description.records_passes:
            raise ValueError(
                "trace_steps must be 0 for a trainable that does not record its passes, got "
                f"{self.trace_steps} with trainable {self.trainable}"
            )
        if self.synthetic_data and self.data is not None:
            raise ValueError(
                f"data and synthetic_data exclude each other, got data {shown(self.data)}"
            )
        for name, value in self.env.items():
            _check_variable(name, value)

    @property
    def _is_installed(self) -> bool:
        return self.trainable in trainable_names()

    @property
    def simulated(self) -> bool:
        """Whether trials are simulated or replayed instead of run on the cluster."""
        return self.description.trains != "real"

    @property
    def description(self) -> TrainableDescription:
        """The description of the trainable. Raises InputError where it is not installed."""
        return describe_configured(self.trainable, self.command)

    @property
    def trainable_setup(self) -> TrainableSetup:
        """Arguments of the trainable's factory."""
        return TrainableSetup(
            space=self.space,
            layouts=self.layouts,
            env=self.env,
            runs=self.runs,
            command=self.command,
            simulated_trainer=self.simulated_trainer,
        )

    def refuse_unless_given_again(self, env: Mapping[str, str]) -> None:
        """Raise InputError where `env` is not the environment of the ranks in this stored request:
        who made a run directory could make them run any code by it, as by the command of a run."""
        if self.command is not None:
            argv = shown(self.command.get("argv"))
            raise InputError(
                f"the run starts the command {argv}: give `trust_run` if it is yours",
                field="resume",
            )
        if dict(env) == dict(self.env):
            return
        variables = ", ".join(f"{name}={shown(value)}" for name, value in self.env.items())
        if env:
            raise InputError(f"must be that of the run ({variables or 'none'})", field="env")
        raise InputError(
            f"the run sets variables for its ranks ({variables}): give them again as `env`, or "
            "give `trust_run`",
            field="resume",
        )

    def all_layouts(self) -> list[Layout]:
        """Every layout that may be tried."""
        return self.space.layouts() if self.layouts is None else list(self.layouts)

    def why_not(self, layout: Layout) -> str | None:
        """Why the layout is none that may be tried, or None where it is one."""
        if self.layouts is None:
            return self.space.why_not(layout)
        return None if layout in self.layouts else "it must be one of the layouts to try"


def request_from_json(values: object) -> Request:
    """Read a stored request. Raises InputError."""
    if not isinstance(values, Mapping):
        raise InputError(f"request must be a JSON object, got {shown(values)}")
    return validated(Request, values, what="request")


def _check_variable(name: str, value: str) -> None:
    if not _VARIABLE_NAME.fullmatch(name):
        raise ValueError(f"env: NAME must be letters, digits and underscores, got {shown(name)}")
    if name in _SET_FOR_EACH_RANK:
        raise ValueError(f"env: {name} is set for each rank and cannot be given")
    if _LOADS_CODE.fullmatch(name) and name not in _HARMLESS:
        raise ValueError(
            f"env: {name} makes programs load other code and cannot be given; where it is needed, "
            "set it before Ray is started"
        )
    if "\0" in value:
        raise ValueError(f"env: the value of {name} must not contain a null character")

"""Contract tests that every trainable must pass."""

import dataclasses
import math
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pydantic
import pytest

from autotune.cost.trainers import trainer_of
from autotune.layout import SEARCHED, Layout
from autotune.named_spaces import load_space
from autotune.space import SearchSpace
from autotune.trial.trainable import (
    RankHost,
    Trainable,
    TrainableDescription,
    TrainableSetup,
)
from autotune.trial.trial import (
    Ended,
    Outcome,
    StepReport,
    TrialSpec,
    to_json,
    trial_spec_from_json,
)


class TrainableContract:
    """Tests of one trainable. A subclass sets `description` and may override space and layout."""

    description: TrainableDescription

    @classmethod
    def space(cls) -> SearchSpace:
        """The space: by default `tiny` on one node of two devices."""
        tiny = load_space("tiny")
        cluster = dataclasses.replace(tiny.cluster, nodes=1, memory_gib=1.0)
        return tiny.replaced({"cluster": cluster}, what="cluster")

    @classmethod
    def setup_of_trainable(cls) -> TrainableSetup:
        """Arguments of the trainable's factory."""
        return TrainableSetup(space=cls.space())

    def working_layout(self) -> Layout:
        """A layout that runs: by default two replicas, ZeRO 1."""
        return Layout(data_parallel=2, gradient_accumulation_steps=4)

    def spec(self, **changes: Any) -> TrialSpec:
        """A short trial of the working layout."""
        space = self.space()
        values = {
            "trial_id": "0001",
            "layout": self.working_layout(),
            "model": space.model,
            "cluster": space.cluster,
            "precision": space.precision,
            "warmup_steps": 1,
            "measured_steps": 2,
            "log_dir": None,
            "synthetic_data": True,
            "trial_timeout_seconds": 120.0,
            **changes,
        }
        return TrialSpec(**values)

    def failing_spec(self) -> TrialSpec | None:
        """A trial that runs out of memory; None where there is none."""
        return None

    @pytest.fixture(scope="class")
    @classmethod
    def trainable(cls) -> Trainable:
        """One trainable for all tests of the class, as in a search."""
        return cls.description.make(cls.setup_of_trainable())

    @pytest.fixture(scope="class")
    @classmethod
    def hosts(cls, trainable: Trainable) -> Iterator[list[RankHost]]:
        """The host of one node, closed at the end; empty where the trainable needs no hosts."""
        factory = trainable.host_factory
        hosts = [] if factory is None else [factory(address="127.0.0.1")]
        try:
            yield hosts
        finally:
            for host in hosts:
                host.close()

    def test_it_describes_itself(self) -> None:
        """Its description names a trainer and dimensions that the tuner knows."""
        description = self.description
        assert description.name and not description.name.startswith("-")
        assert trainer_of(description.trainer).name
        assert set(description.dimensions) <= set(SEARCHED)
        assert (description.notice is None) == (description.trains == "real")
        if description.trains == "recorded":
            assert not description.reduced_trials, "only whole steps were recorded"

    def test_it_can_be_sent_to_another_process(self, trainable: Trainable) -> None:
        """Ray pickles the trainable and its host factory to send them to the nodes."""
        copy = pickle.loads(pickle.dumps(trainable))
        assert type(copy) is type(trainable)
        pickle.dumps(trainable.host_factory)

    def test_the_nodes_are_checked_before_the_first_trial(
        self, trainable: Trainable, hosts: Sequence[RankHost]
    ) -> None:
        """A healthy node passes."""
        trainable.check(self.space().cluster, hosts)

    def test_a_trial_reports_every_step_and_then_its_end(
        self, trainable: Trainable, hosts: Sequence[RankHost], tmp_path: Path
    ) -> None:
        """One report per step, numbered from 0, then one Ended."""
        spec = self.spec(log_dir=str(tmp_path))
        *steps, ended = trainable.run(spec, hosts)
        assert isinstance(ended, Ended) and ended.outcome is Outcome.OK, ended
        assert ended.reason == ""
        assert [step.step for step in steps if isinstance(step, StepReport)] == [0, 1, 2]
        for step in steps:
            assert isinstance(step, StepReport)
            assert math.isfinite(step.step_seconds) and step.step_seconds > 0
            assert all(rank.step == step.step for rank in step.ranks)

    def test_what_it_reports_survives_json(
        self, trainable: Trainable, hosts: Sequence[RankHost]
    ) -> None:
        """Specs and reports cross process boundaries as JSON."""
        spec = self.spec()
        copy = trial_spec_from_json(to_json(spec))
        assert copy == spec
        for event in trainable.run(copy, hosts):
            assert pydantic.TypeAdapter(type(event)).validate_python(to_json(event)) == event

    def test_a_trial_can_be_ended_at_any_step_and_another_begun(
        self, trainable: Trainable, hosts: Sequence[RankHost]
    ) -> None:
        """Closing the iterator ends the trial; the nodes are free for the next."""
        spec = self.spec()
        events = trainable.run(spec, hosts)
        assert isinstance(next(events), StepReport)
        events.close()
        *_, ended = trainable.run(spec, hosts)
        assert isinstance(ended, Ended) and ended.outcome is Outcome.OK

    def test_a_reduced_trial_runs_all_numbers_of_micro_batches(
        self, trainable: Trainable, hosts: Sequence[RankHost], tmp_path: Path
    ) -> None:
        """All steps with one number, then all with the next, numbered through, then one Ended."""
        if not self.description.reduced_trials:
            pytest.skip("reduced trials are not asked of it")
        spec = self.spec(micro_batch_counts=(1, 2), log_dir=str(tmp_path))
        *steps, ended = trainable.run(spec, hosts)
        assert isinstance(ended, Ended) and ended.outcome is Outcome.OK, ended
        found = [(s.step, s.micro_batches) for s in steps if isinstance(s, StepReport)]
        assert found == list(enumerate([1, 1, 1, 2, 2, 2]))

    def test_passes_are_recorded_where_it_says_so(
        self, trainable: Trainable, hosts: Sequence[RankHost]
    ) -> None:
        """A traced trial ends with a trace of its last step; other trainables trace nothing."""
        *_, ended = trainable.run(self.spec(trace_steps=1), hosts)
        assert isinstance(ended, Ended) and ended.outcome is Outcome.OK
        assert bool(ended.trace) == self.description.records_passes
        assert {done.step for trace in ended.trace for done in trace.intervals} <= {2}

    def test_out_of_memory_is_an_outcome_with_a_reason(
        self, trainable: Trainable, hosts: Sequence[RankHost]
    ) -> None:
        """The trial ends as oom with a reason, and the next trial runs on the same nodes."""
        spec = self.failing_spec()
        if spec is None:
            pytest.skip("nothing of this trainable runs out of memory")
        *_, ended = trainable.run(spec, hosts)
        assert isinstance(ended, Ended) and ended.outcome is Outcome.OOM, ended
        assert ended.reason
        *_, ended = trainable.run(self.spec(), hosts)
        assert isinstance(ended, Ended) and ended.outcome is Outcome.OK

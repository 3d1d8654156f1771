"""Reduced trials: what is run, what is made of it, and that it tells the truth."""

import dataclasses
from pathlib import Path

import pytest

from autotune.cluster import Cluster
from autotune.hardware import device_named
from autotune.layout import Layout, layout_from_mapping
from autotune.ledger.ledger import Ledger
from autotune.model import Model
from autotune.named_spaces import load_space
from autotune.store.run_directory import open_run
from autotune.trial.measurement import measure
from autotune.trial.reduced import extrapolated, reduced_counts
from autotune.trial.trial import Ended, Outcome, StepReport, TrialSpec
from tests.autotune.simulate import Silent, new_store, run_to_the_end
from trainables.deepspeed_llm.host import LocalHost
from trainables.deepspeed_llm.launch import DeepSpeedLlm
from trainables.fake import FakeTrainable
from trainables.simulated import SimulatedTrainable

MANY = Model(
    num_hidden_layers=4,
    hidden_size=128,
    intermediate_size=256,
    num_attention_heads=4,
    num_key_value_heads=4,
    vocab_size=512,
    sequence_length=64,
    global_batch_size=48,
)


def spec_of(layout: Layout, model: Model, counts: tuple[int, ...] = ()) -> TrialSpec:
    cluster = Cluster(nodes=1, gpus_per_node=layout.world_size, device=device_named("cpu"))
    return TrialSpec(
        trial_id="1",
        layout=layout,
        model=model,
        cluster=cluster,
        precision="fp32",
        warmup_steps=1,
        measured_steps=4,
        log_dir=None,
        synthetic_data=True,
        micro_batch_counts=counts,
    )


def test_counts_fill_the_pipeline_and_save_two_thirds_of_the_time() -> None:
    assert reduced_counts(Layout(gradient_accumulation_steps=18)) == (2, 4)
    assert reduced_counts(Layout(gradient_accumulation_steps=17)) == ()
    deep = Layout(pipeline_parallel=8, gradient_accumulation_steps=72)
    assert reduced_counts(deep) == (8, 16)
    assert reduced_counts(dataclasses.replace(deep, gradient_accumulation_steps=71)) == ()


def test_the_line_through_two_counts() -> None:
    assert extrapolated((2, 4), (1.5, 2.5), 64) == pytest.approx(0.5 + 0.5 * 64)


def test_noise_never_makes_a_layout_faster_than_its_short_steps() -> None:
    for long in (0.9, 1.0, 1.05):
        assert extrapolated((2, 4), (1.0, long), 64) == long * 16


def test_steps_are_numbered_through_and_measured_by_count() -> None:
    layout = layout_from_mapping({"micro_batch_size": 1}, MANY)
    spec = spec_of(layout, MANY, counts=(2, 4))
    events = list(FakeTrainable().run(spec, []))
    steps = [event for event in events if isinstance(event, StepReport)]
    assert [step.step for step in steps] == list(range(10))
    assert [step.micro_batches for step in steps] == [2] * 5 + [4] * 5
    assert isinstance(events[-1], Ended) and events[-1].outcome is Outcome.OK
    measured = measure(spec, steps)
    assert (measured.measured_steps, measured.measured_micro_batches) == (8, (2, 4))
    # The fake takes no time per micro-batch, which no real step does: scaled up.
    assert measured.step_seconds == steps[0].step_seconds * 48 / 4
    assert measured.step_seconds_iqr is None
    assert measure(spec, steps[:6]).step_seconds is None, "one count says nothing of others"


def test_simulated_short_steps_extrapolate_to_the_long_one() -> None:
    space = load_space("llm13b")
    for layout in space.layouts()[::400]:
        counts = reduced_counts(layout)
        spec = dataclasses.replace(
            spec_of(layout, space.model), cluster=space.cluster, precision="bf16"
        )
        whole = measure(spec, _steps(SimulatedTrainable().run(spec, [])))
        short = dataclasses.replace(spec, micro_batch_counts=counts)
        reduced = measure(short, _steps(SimulatedTrainable().run(short, [])))
        if whole.step_seconds is not None:
            assert reduced.step_seconds == pytest.approx(whole.step_seconds, rel=0.05)


def _steps(events: object) -> list[StepReport]:
    return [event for event in events if isinstance(event, StepReport)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("sizes", [{"data_parallel": 2}, {"pipeline_parallel": 2}])
def test_real_short_steps_tell_the_time_and_memory_of_the_long_one(
    host: LocalHost, sizes: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = layout_from_mapping({**sizes, "micro_batch_size": 1}, MANY)
    counts = reduced_counts(layout)
    assert counts
    found, started = [], []
    start = host.start
    monkeypatch.setattr(host, "start", lambda job: (started.append(job), start(job)))
    long_sequences = dataclasses.replace(MANY, sequence_length=256)
    for counts_to_run in ((), counts):
        spec = dataclasses.replace(
            spec_of(layout, long_sequences, counts_to_run),
            log_dir=str(tmp_path / "logs"),
            measured_steps=4,
        )
        steps = _steps(DeepSpeedLlm(device_kind="cpu").run(spec, [host]))
        found.append(measure(spec, steps))
    whole, reduced = found
    assert whole.step_seconds is not None and reduced.step_seconds is not None
    # Two shared cores: the two short steps differ by tens of per cent from one to the next, and the
    # line through them doubles that. Steps that are not extrapolated would be six times too short.
    assert 1 / 3 < reduced.step_seconds / whole.step_seconds < 3
    assert whole.peak_memory_gib is not None and reduced.peak_memory_gib is not None
    assert reduced.peak_memory_gib == pytest.approx(whole.peak_memory_gib, rel=0.25)
    assert len(started) == 2, "a reduced trial starts its ranks once"
    assert {file.name for file in (tmp_path / "logs").iterdir()} == {"rank-0.log", "rank-1.log"}


def test_a_search_explores_by_reduced_trials_and_confirms_by_whole_ones(tmp_path: Path) -> None:
    # Small micro-batches are many, so that most trials are much shorter with fewer of them.
    space = load_space("llm13b").restricted({"micro_batch_size": (1,)})
    store = new_store(tmp_path, space=space, trainable="simulated", search="guided", max_trials=5)
    records = run_to_the_end(store, worker=SimulatedTrainable()).records
    assert records == open_run(tmp_path).trials(), "counts of micro-batches are on record"
    for record in records:
        counts = reduced_counts(record.layout)
        whole = (record.layout.gradient_accumulation_steps,)
        if record.outcome is Outcome.OK:
            measured = record.measurement.measured_micro_batches
            assert measured == (counts if record.purpose == "reduced" else whole)
        assert (record.purpose == "reduced") <= bool(counts)
    seconds = {record.purpose: record.gpu_seconds for record in records}
    assert seconds["reduced"] < 0.5 * seconds["confirm"]


def test_whole_trials_where_they_are_asked_for(tmp_path: Path) -> None:
    space = load_space("llm13b")
    store = new_store(
        tmp_path, space=space, trainable="simulated", reduced_trials=False, max_trials=2
    )
    ledger = Ledger(store, Silent())
    spec = ledger.next_trial()
    assert spec is not None and spec.micro_batch_counts == ()

"""Facts of a run, what a search cost beside others, and advice in words."""

import dataclasses
import datetime
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import InputError
from autotune.layout import Layout
from autotune.report.advice import advice
from autotune.report.charts.trials import pareto_front
from autotune.report.effort import _random_curve, effort, progress
from autotune.report.facts import RunFacts, state
from autotune.store.record import TrialRecord
from autotune.store.run_directory import RunStore
from autotune.store.status import status_now, write_status
from autotune.trial.measurement import Measurement
from autotune.trial.trial import Outcome
from tests.autotune.report.test_page import simulated
from tests.autotune.simulate import new_store, run_to_the_end
from tests.conftest import examples


def test_facts_are_those_of_the_ledger(tmp_path: Path) -> None:
    ledger = simulated(tmp_path)
    facts = RunFacts(tmp_path)
    assert facts.records == ledger.records
    assert facts.ranked == ledger.best and facts.best == ledger.best[0]
    assert sum(facts.counts().values()) == len(ledger.records)
    assert facts.word == "simulated" and facts.stopped_because == ledger.stopped_because
    summary = ledger.summary()
    assert summary is not None
    assert [record.trial_id for record in facts.equal_to_best] == summary["equal_within_noise"]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run in .* \(run.json is missing\)"):
        RunFacts(tmp_path)


def test_progress_ends_at_the_fastest_explored_trial(tmp_path: Path) -> None:
    simulated(tmp_path)
    facts = RunFacts(tmp_path)
    rows = progress(facts)
    kept = [record for record in facts.worked if facts.outcome_of(record) is Outcome.OK]
    times = [record.measurement.step_seconds or 0.0 for record in kept]
    assert len(rows) == len(facts.explored) and rows[-1]["step_seconds"] == min(times)
    hours = [row["gpu_hours"] for row in rows]
    assert hours == sorted(hours) and hours[-1] <= facts.gpu_hours


def test_brute_force_costs_what_its_trials_cost(tmp_path: Path) -> None:
    """Of a search that ran every layout, the predicted cost is near that of its trials."""
    from autotune.named_spaces import load_space

    space = dataclasses.replace(
        load_space("llm13b"),
        micro_batch_size=(1, 2),
        zero_stage=(1,),
        attention_kernel=("sdpa_flash",),
        rmsnorm_kernel=("fused",),
        activation_checkpointing=("none",),
    )
    simulated(tmp_path, space=space, max_trials=1000, stop_factor=1e9, reduced_trials=False)
    facts = RunFacts(tmp_path)
    costs = effort(facts)
    assert costs is not None and costs.layouts == len(facts.explored)
    spent = sum(record.gpu_seconds for record in facts.explored) / 3600
    assert costs.brute_force_gpu_hours == pytest.approx(spent, rel=0.05)
    assert costs.random_trials is not None and 1 <= costs.random_trials <= costs.layouts


@given(
    seconds=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    failing=st.integers(0, 2),
)
@examples(30)
def test_the_random_curve_is_that_of_all_orders(seconds: list[int], failing: int) -> None:
    times = np.array(sorted(seconds) + [np.inf] * failing, dtype=float)
    for row in _random_curve(times, hours_per_trial=2.0):
        drawn = row["trials"]
        assert row["gpu_hours"] == 2.0 * drawn
        bests = sorted(min(some) for some in itertools.combinations(times, drawn))
        for name, quantile in (("low", 0.1), ("median", 0.5), ("high", 0.9)):
            expected = bests[int(np.ceil(quantile * len(bests) - 1e-9)) - 1]
            assert row[name] == (expected if np.isfinite(expected) else None), (name, drawn)


def record_like(store: RunStore, layout: Layout, **changes: Any) -> None:
    """Add a trial of the layout: ok with `seconds`, or with the outcome."""
    now = datetime.datetime.now(datetime.UTC)
    seconds = changes.pop("seconds", None)
    nothing = {field.name: None for field in dataclasses.fields(Measurement)}
    measurement = Measurement(
        **{
            **nothing,
            "measured_steps": 5 if seconds else 0,
            "measured_micro_batches": (1,) if seconds else (),
            "step_seconds": seconds,
            "step_seconds_iqr": 0.001 if seconds else None,
            "peak_memory_gib": changes.pop("gib", 0.05) if seconds else None,
        }
    )
    store.add_trial(
        TrialRecord(
            trial_id=f"{len(store.trials()) + 1:04d}",
            trainable="fake",
            layout=layout,
            measurement=measurement,
            startup_seconds=None,
            gpu_seconds=1.0,
            attempts=1,
            started_at=now,
            finished_at=now,
            **{"purpose": "explore", "outcome": Outcome.OK, "reason": "", **changes},
        ),
        [],
    )


def test_advice_rests_on_pairs_that_differ_in_one_dimension(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run")
    layouts = {
        (lay.zero_stage, lay.micro_batch_size): lay
        for lay in store.request.all_layouts()
        if (lay.tensor_parallel, lay.pipeline_parallel) == (1, 1)
        and lay.attention_kernel == "sdpa_flash"
        and (lay.rmsnorm_kernel, lay.activation_checkpointing) == ("fused", "none")
    }
    record_like(store, layouts[1, 1], seconds=0.20)
    record_like(store, layouts[1, 2], seconds=0.10)
    record_like(store, layouts[2, 1], seconds=0.22)
    record_like(store, layouts[2, 2], seconds=0.11, gib=0.112)
    found = {item.sentence: item.trials for item in advice(RunFacts(store.directory))}
    assert found == {
        "ZeRO stage 1: 9% less time per step than 2, in 2 pairs of trials that differ in nothing "
        "else.": ("0002", "0004", "0001", "0003"),
        "micro batch size 2: 50% less time per step than 1, in 2 pairs of trials that differ in "
        "nothing else.": ("0002", "0001", "0004", "0003"),
        "The best layout uses 40% of the memory limit: memory does not limit it.": ("0002",),
    }


def test_advice_names_values_that_run_out_of_memory(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run")
    plain = [
        lay
        for lay in store.request.all_layouts()
        if (lay.tensor_parallel, lay.pipeline_parallel) == (1, 1) and lay.zero_stage == 2
    ]
    small = [lay for lay in plain if lay.micro_batch_size == 1][:4]
    large = [lay for lay in plain if lay.micro_batch_size == 2][:4]
    for place, layout in enumerate(small):
        record_like(store, layout, seconds=0.2 + place)
    for layout in large:
        record_like(store, layout, outcome=Outcome.OOM, reason="rank 0: no memory")
    sentences = [item.sentence for item in advice(RunFacts(store.directory))]
    expected = "micro batch size 2 ran out of memory in 4 of 4 trials; other values in 0%."
    assert expected in sentences


def test_a_layout_that_failed_its_longer_trial_counts_as_failed(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run")
    slow, fast = (
        next(
            lay
            for lay in store.request.all_layouts()
            if (lay.tensor_parallel, lay.pipeline_parallel, lay.zero_stage) == (1, 1, 1)
            and (lay.rmsnorm_kernel, lay.activation_checkpointing) == ("fused", "none")
            and (lay.attention_kernel, lay.micro_batch_size) == ("sdpa_flash", size)
        )
        for size in (1, 2)
    )
    record_like(store, slow, seconds=0.20)
    record_like(store, fast, seconds=0.10)
    no_memory = {"outcome": Outcome.OOM, "reason": "rank 0: no memory"}
    record_like(store, fast, purpose="confirm", **no_memory)
    record_like(store, slow, purpose="confirm", seconds=0.21)
    facts = RunFacts(store.directory)
    assert facts.best is not None and facts.best.layout == slow
    assert [record.layout for record in facts.sound] == [slow] and not facts.equal_to_best
    assert facts.outcome_of(facts.records[1]) is Outcome.OOM
    assert [row["step_seconds"] for row in progress(facts)] == [0.20, 0.20]
    assert [row["trial"] for row in pareto_front(facts)] == ["0004"]
    sentences = [item.sentence for item in advice(facts)]
    assert sentences[0] == (
        "1 layout that ran faster in the first trial ended as oom in the longer one, and did not "
        "count."
    )
    assert not any("less time" in sentence or "more time" in sentence for sentence in sentences)
    costs = effort(facts)
    assert costs is not None and costs.trials == 1 and costs.random_trials is not None


def test_what_is_equal_within_noise_is_not_called_slower(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run")
    layouts = [lay for lay in store.request.all_layouts() if lay.zero_stage == 1][:400:40]
    for place, layout in enumerate(layouts):
        record_like(store, layout, seconds=0.2 + place * 1e-5)
    facts = RunFacts(store.directory)
    assert len(facts.equal_to_best) == len(layouts) - 1
    text = " ".join(item.sentence for item in advice(facts))
    assert "less time" not in text and "more time" not in text


def test_a_run_without_the_trial_that_found_its_best_has_no_number_of_it(tmp_path: Path) -> None:
    ledger = simulated(tmp_path)
    best = ledger.best[0].layout
    explored = next(r for r in ledger.records if r.layout == best and r.purpose != "confirm")
    (tmp_path / "trials" / f"{explored.trial_id}.parquet").unlink()
    costs = effort(RunFacts(tmp_path))
    assert costs is not None and costs.trials is None


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        ({"running": True}, "The search still runs on "),
        ({"running": True, "process_id": 2**22 - 1}, "The search was killed; it can be resumed."),
        ({"running": False}, "The search was interrupted; it can be resumed."),
    ],
)
def test_what_is_said_of_a_search_that_has_not_ended(
    status: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    run_to_the_end(new_store(tmp_path), trials=3)
    write_status(tmp_path, dataclasses.replace(status_now(running=True), **status))
    assert sentence in state(RunFacts(tmp_path))

"""What Prometheus has of a search equals its table of trials."""

import re
from collections import Counter

import pytest

from autotune.on_ray.metrics import METRICS
from autotune.store.record import TrialRecord
from autotune.trial.trial import Outcome
from tests.monitoring.conftest import LiveRay, Prometheus, Search, eventually, wait_for

UNITS = ("seconds", "ratio", "trials", "hours", "info", "gib")


def ok(records: list[TrialRecord]) -> list[TrialRecord]:
    return [record for record in records if record.outcome is Outcome.OK]


def check(prometheus: Prometheus, search: Search) -> None:
    """Every metric of finished trials is what the records say."""
    records = search.ledger.records

    def value(metric: str) -> float | None:
        return prometheus.value(f"max without (instance, job) (ray_autotune_{metric})")

    here = search.selector
    per_outcome = "sum by (outcome) (max without (instance, job) (ray_autotune_%s%s))"
    trials = prometheus.query(per_outcome % ("finished_trials", here))
    counted = Counter(record.outcome.value for record in records)
    assert {series["metric"]["outcome"]: series["value"] for series in trials} == counted
    hours = {
        outcome: sum(r.gpu_seconds for r in records if r.outcome == outcome) / 3600
        for outcome in counted
    }
    used = prometheus.query(per_outcome % ("used_gpu_hours", here))
    assert {series["metric"]["outcome"]: series["value"] for series in used} == pytest.approx(hours)
    measured = [record.measurement for record in ok(records)]
    fastest = min(m.step_seconds for m in measured if m.step_seconds is not None)
    assert value(f"best_step_seconds{here}") == pytest.approx(fastest)
    assert value(f"best_mfu_ratio{here}") == pytest.approx(max(m.mfu or 0 for m in measured))
    errors = [
        record.prediction.step_seconds / record.measurement.step_seconds - 1
        for record in ok(records)
        if record.prediction is not None and record.measurement.step_seconds is not None
    ]
    last, mean = errors[-1], sum(map(abs, errors)) / len(errors)
    assert value(f"step_time_prediction_error_ratio{here}") == pytest.approx(last)
    name = "step_time_prediction_mean_absolute_error_ratio"
    assert value(f"{name}{here}") == pytest.approx(mean)


def test_metrics_equal_the_trials_also_of_a_resumed_search(
    search: Search, prometheus: Prometheus
) -> None:
    search.begin()
    search.run(3)
    eventually(lambda: check(prometheus, search))
    search.listeners.search_ends()  # and another process goes on
    search.begin()
    search.run(2)
    eventually(lambda: check(prometheus, search))
    (series, *_) = prometheus.query(f"ray_autotune_best_step_seconds{search.selector}")
    assert series["metric"]["space"] == "llm13b"
    assert series["metric"]["trainable"] == "simulated"


def test_what_runs_is_known_while_it_runs(search: Search, prometheus: Prometheus) -> None:
    search.begin()
    spec, step = search.begin_trial()
    here = search.selector
    info = f"ray_autotune_running_trial_info{here}"
    (series, *_) = wait_for(lambda: prometheus.query(info), "the running trial")
    assert series["value"] == 1 and series["metric"]["trial"] == spec.trial_id
    assert series["metric"]["layout"] == spec.layout.describe()
    seconds = prometheus.query(f"ray_autotune_running_step_seconds{here}")
    assert seconds[0]["value"] == pytest.approx(step.step_seconds)
    memory = prometheus.query(f"ray_autotune_running_peak_memory_gib{here}")
    assert memory[0]["value"] == pytest.approx(step.peak_memory_gib)
    assert not prometheus.query(f"ray_autotune_best_step_seconds{here}"), "nothing is known yet"
    search.ledger.attempt_lost(spec.trial_id, "its node is gone")
    gone = f"ray_autotune_running_step_seconds{here}"
    wait_for(lambda: not prometheus.query(gone), "the end of the figures of a lost attempt")
    assert prometheus.query(info), "the trial itself runs again"


def test_each_metric_has_a_help_text_and_a_unit(search: Search, prometheus: Prometheus) -> None:
    search.begin()
    search.run(2)
    search.begin_trial()
    names = {metric.exported_name for metric in METRICS}
    texts = wait_for(
        lambda: names <= prometheus.help_texts().keys() and prometheus.help_texts(), "all metrics"
    )
    ours = {name: text for name, text in texts.items() if name.startswith("ray_autotune_")}
    assert ours == {metric.exported_name: metric.help for metric in METRICS}
    assert all(name.rpartition("_")[2] in UNITS for name in names)
    assert all(re.fullmatch(r"[0-9A-Z].{15,}\.", metric.help) for metric in METRICS)


def test_both_ways_of_the_example_reach_ray(prometheus: Prometheus, ray_cluster: LiveRay) -> None:
    port = ray_cluster.metrics_port
    up = wait_for(
        lambda: len(found := prometheus.query(f'up{{instance=~".*:{port}"}} == 1')) == 2 and found,
        "both targets",
    )
    assert {series["metric"]["job"] for series in up} == {"autotune", "ray"}

"""Ray's dashboard during a real search: layouts, nodes and reservations are found by name."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.util.state import list_actors, list_placement_groups, list_tasks

from autotune.store.results import Run
from tests.conftest import REPOSITORY
from tests.monitoring.conftest import LiveRay, Prometheus, wait_for

JOB_NAME = re.compile(r"(\d{4}) (tp\d.*)")
"""Of what a node does: the trial and its layout."""


class RealSearch:
    """`autotune run` on the cluster, as a user calls it."""

    def __init__(self, ray: LiveRay, folder: Path) -> None:
        self.ray = ray
        self.directory = folder / "runs" / "tiny"
        arguments = ["--space", "tiny", "--address", ray.address, "--max-trials", "99"]
        arguments += ["--log", "tensorboard", "--out", "runs/tiny"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "autotune.run", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def tasks(self, **filters: str) -> list[Any]:
        given = [(name, "=", value) for name, value in filters.items()]
        return list(list_tasks(address=self.ray.dashboard, filters=given, limit=5000, detail=True))

    def end(self) -> Run:
        """Interrupt it after some trials."""
        trials = self.directory / "trials"
        wait_for(lambda: len(list(trials.glob("*.parquet"))) >= 2, "two trials", seconds=200)
        self.process.send_signal(signal.SIGINT)
        output, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 130, output
        assert "failed, the search goes on" not in output
        return Run(self.directory)


@pytest.fixture(scope="module")
def search(ray_cluster: LiveRay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSearch]:
    made = RealSearch(ray_cluster, tmp_path_factory.mktemp("searching"))
    yield made
    if made.process.poll() is None:
        made.process.terminate()
        made.process.communicate(timeout=60)


def test_what_runs_is_a_task_with_the_name_of_the_layout(search: RealSearch) -> None:
    running = wait_for(
        lambda: [t for t in search.tasks(state="RUNNING") if JOB_NAME.fullmatch(t.name)],
        "a running layout",
    )
    assert {task.type for task in running} == {"ACTOR_TASK"}


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("tasks --filter state=RUNNING", "search tiny runs/tiny.train"),
        ("actors --detail", "node 1 ("),
        ("placement-groups", "tiny runs/tiny ("),
    ],
)
def test_so_they_are_on_the_command_line(search: RealSearch, words: str, shown: str) -> None:
    ray = [str(Path(sys.executable).with_name("ray")), "list", *words.split()]
    page = (REPOSITORY / "docs" / "monitoring.md").read_text()
    kind, *rest = words.split()
    assert " ".join(["ray list", kind, "--address http://127.0.0.1:8265", *rest]) in page

    def is_listed() -> bool:
        listed = subprocess.run(
            [*ray, "--address", search.ray.dashboard], capture_output=True, text=True, timeout=60
        )
        return shown in listed.stdout

    # Between two steps no task of the trial runs.
    wait_for(is_listed, f"{shown} in the list")


def test_a_layout_is_found_by_name_in_the_page_of_the_dashboard(search: RealSearch) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import expect, sync_playwright

    (job_id,) = {task.job_id for task in search.tasks() if JOB_NAME.fullmatch(task.name)}
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        page = browser.new_page(viewport={"width": 1400, "height": 3000})
        page.goto(f"{search.ray.dashboard}/#/jobs/{job_id}", wait_until="domcontentloaded")
        for section in ("Task Table", "Actor Table", "Placement Group Table"):
            page.get_by_text(section, exact=True).last.click(timeout=60_000)
        page.get_by_label("Page Size").first.fill("500")
        for name in (
            re.compile(r"^\d{4} tp\d"),
            re.compile(r"^node 1 \("),
            "search tiny runs/tiny",
            re.compile(r"^tiny runs/tiny \("),
        ):
            expect(page.get_by_text(name, exact=True).first).to_be_visible(timeout=60_000)
        browser.close()


def test_a_trial_is_one_task_per_node_and_job_and_all_have_names(
    search: RealSearch, prometheus: Prometheus
) -> None:
    here = '{run="runs/tiny",trainable="deepspeed",space="tiny"}'
    most = f"max_over_time(ray_autotune_finished_trials{here}[1h])"
    wait_for(lambda: prometheus.query(most), "the metrics of the search", seconds=120)
    run = search.end()
    trials = run.trials.to_pylist()
    layouts = {trial["trial_id"]: trial for trial in trials}
    tasks = search.tasks()
    named = Counter(task.name for task in tasks if JOB_NAME.fullmatch(task.name))
    numbers = {name.split()[0] for name in named}
    assert layouts.keys() <= numbers and len(numbers) <= len(layouts) + 1, "one was cut short"
    for name, count in named.items():
        trial = layouts.get(name.split()[0])
        if trial is None:
            continue
        for word, column in (("tp", "tensor_parallel"), ("mb", "micro_batch_size")):
            assert f" {word}{trial[column]}" in name
        parts = 2 if trial["purpose"] == "reduced" else 1
        assert count <= 2 * parts * trial["attempts"], "a task per node and part"
    assert not [task.name for task in tasks if task.name.endswith(".events")]
    actors = {actor.repr_name for actor in list_actors(address=search.ray.dashboard, detail=True)}
    assert {"node 0", "node 1"} <= {name.partition(" (")[0] for name in actors}
    assert "search tiny runs/tiny" in actors
    groups = list_placement_groups(address=search.ray.dashboard, detail=True)
    ours = [group.name for group in groups if group.name.startswith("tiny runs/tiny (")]
    assert ours and len(set(ours)) == len(ours)
    seen = prometheus.value(f"sum(max without (instance, job) ({most}))")
    assert seen is not None and 0 < seen <= len(trials), "the last ones may come too late"
    mfu = f"max_over_time(ray_autotune_best_mfu_ratio{here}[1h])"
    assert not prometheus.query(mfu), "the peak of a CPU is not known"
    logged = {folder.name for folder in (run.directory / "tensorboard").iterdir()}
    cut_short = {f"{len(layouts) + 1:04d}"}
    assert layouts.keys() <= logged <= layouts.keys() | cut_short

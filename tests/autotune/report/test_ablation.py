"""One dimension changed at a time: which layouts, their predictions and trials."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from autotune.__main__ import autotune as group
from autotune.errors import InputError
from autotune.layout import DIMENSIONS, SEARCHED, Layout
from autotune.named_spaces import load_space
from autotune.options.command_line import command_line
from autotune.report.ablation import TRADED, ablation, layouts_to_run, print_ablation
from autotune.report.facts import RunFacts
from autotune.space import Excluded
from tests.autotune.report.test_page import simulated
from tests.autotune.simulate import new_store
from tests.conftest import examples

SPACE = load_space("llm13b")
LAYOUTS = SPACE.layouts()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    simulated(directory, search="guided", max_trials=8)
    return directory


@given(layout=st.sampled_from(LAYOUTS), dimension=st.sampled_from(SEARCHED), data=st.data())
@examples(60)
def test_a_changed_layout_is_legal_and_has_the_value(
    layout: Layout, dimension: str, data: st.DataObject
) -> None:
    value = data.draw(st.sampled_from(getattr(SPACE, dimension)))
    found = SPACE.changed(layout, **{dimension: value})
    if isinstance(found, Excluded):
        assert found.reason
        return
    assert getattr(found, dimension) == value
    assert found.world_size == SPACE.cluster.devices
    replicas = found.data_parallel * found.micro_batch_size
    assert replicas * found.gradient_accumulation_steps == SPACE.model.global_batch_size
    for declared in DIMENSIONS.values():
        if declared.rule:
            assert declared.rule(found.columns(), SPACE.task) is None
    assert SPACE.changed(layout) == layout, "nothing changes where nothing is given"


def test_zero_stages_of_one_replica_are_one_layout() -> None:
    space = load_space("tiny")
    alone = next(layout for layout in space.layouts() if layout.tensor_parallel == 4)
    assert alone.zero_stage == 1
    found = space.changed(alone, zero_stage=2)
    assert isinstance(found, Excluded) and "nothing to shard" in found.reason
    sharded = next(
        layout
        for layout in space.layouts()
        if (layout.data_parallel, layout.pipeline_parallel, layout.zero_stage) == (2, 1, 2)
    )
    whole = space.changed(sharded, tensor_parallel=4)
    assert isinstance(whole, Layout) and (whole.data_parallel, whole.zero_stage) == (1, 1)


def test_every_value_of_every_dimension_is_there_or_has_a_reason(run: Path) -> None:
    facts = RunFacts(run)
    variations = ablation(facts)
    best = facts.best
    assert best is not None
    assert variations[0].layout == best.layout and not variations[0].dimensions
    for name in SEARCHED:
        own = [v for v in variations if v.dimensions == (name,)]
        values = {*(DIMENSIONS[name].values or ()), *getattr(facts.space, name)}
        assert len(own) == len(values - {getattr(best.layout, name)}), name
        assert all((v.layout is None) != (v.why_not is None) for v in own)
        for variation in own:
            if variation.layout is not None:
                changed = {
                    n for n in DIMENSIONS if getattr(variation.layout, n) != getattr(best.layout, n)
                }
                assert changed == {name, *variation.follows}
    product = best.layout.tensor_parallel * best.layout.pipeline_parallel
    for variation in variations:
        if variation.dimensions == TRADED and variation.layout is not None:
            layout = variation.layout
            assert layout.tensor_parallel * layout.pipeline_parallel == product


def test_predictions_and_trials_are_those_of_the_run(run: Path) -> None:
    facts = RunFacts(run)
    variations = ablation(facts)
    tried = {record.layout for record in facts.records}
    assert sum(v.record is not None for v in variations) > 1
    for variation in variations:
        if variation.layout is None:
            assert variation.predicted_seconds is None and variation.record is None
            continue
        assert (variation.record is not None) == (variation.layout in tried)
        predicted = facts.predict([variation.layout])
        assert predicted is not None and facts.time_factor is not None
        seconds = float(predicted.estimates.step_seconds[0]) * facts.time_factor
        assert variation.predicted_seconds == pytest.approx(seconds)


def test_variations_of_zero_in_bf16_say_why_not(run: Path) -> None:
    facts = RunFacts(run)
    space = facts.space.replaced({"zero_stage": (0, 1, 2, 3)}, what=None)
    best = facts.best
    assert best is not None
    found = space.changed(best.layout, zero_stage=0)
    assert isinstance(found, Excluded) and "bf16 needs zero_stage 1 to 3" in found.reason


def test_the_table_has_every_layout_on_a_narrow_terminal(run: Path) -> None:
    facts = RunFacts(run)
    console = Console(file=io.StringIO(), width=80, highlight=False)
    variations = ablation(facts)
    print_ablation(console, variations, facts.word)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "predicted" in text and "simulated" in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert text.count("not possible: ") == sum(v.layout is None for v in variations)


def test_all_of_them_can_be_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, figure = tmp_path / "new", tmp_path / "ablation.svg"
    words = ["ablate", run, "--out", out, "--figure", figure, "--json"]
    assert command_line(group, list(map(str, words))) == 0
    printed = json.loads(capsys.readouterr().out)
    facts = RunFacts(out)
    ran = {record.layout for record in facts.explored}
    assert ran == set(layouts_to_run(RunFacts(run))), "nothing was ruled out or stopped"
    assert not any(record.outcome == "stopped" for record in facts.records)
    possible = [v for v in printed["variations"] if v["layout"] is not None]
    assert printed["word"] == "simulated" and len(possible) >= len(ran)
    assert all(v["trial_id"] is not None and v["outcome"] is not None for v in possible)
    assert "<svg" in figure.read_text()
    before = sorted(file.name for file in (out / "trials").iterdir())
    assert command_line(group, list(map(str, words))) == 0, "the table of a finished one"
    assert json.loads(capsys.readouterr().out) == printed
    assert sorted(file.name for file in (out / "trials").iterdir()) == before


def test_a_run_without_a_best_layout_is_refused(tmp_path: Path) -> None:
    new_store(tmp_path)
    with pytest.raises(InputError, match="must be a run in which a layout worked"):
        ablation(RunFacts(tmp_path))


def test_a_trainable_is_not_given_values_that_it_does_not_know(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = RunFacts(run)
    best = facts.ranked[0].layout.zero_stage
    unknown = max({1, 2, 3} - {best})
    known = tuple(sorted({0, 1, 2, 3} - {unknown}))
    description = dataclasses.replace(
        facts.request.description, values={"zero_stage": known}, dimensions=("zero_stage",)
    )
    monkeypatch.setattr(type(facts.request), "description", description)
    seen = set()
    for variation in ablation(facts):
        if variation.dimensions == ("micro_batch_size",):
            assert variation.why_not is not None
            assert variation.why_not.endswith("does not vary micro_batch_size")
            seen.add("dimension")
        if variation.dimensions == ("zero_stage",) and variation.value == str(unknown):
            assert variation.why_not is not None and "zero_stage" in variation.why_not
            seen.add("value")
    assert seen == {"dimension", "value"}

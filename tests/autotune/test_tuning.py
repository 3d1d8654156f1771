"""What a search does before its first trial, and where no trial is left to run."""

import json
from pathlib import Path
from typing import Any

import pytest

import autotune.tuning
from autotune.commands.run import main
from autotune.errors import InputError, NothingFits
from autotune.options.command_line import command_line
from autotune.store.lock import sole_user
from autotune.store.run_directory import open_run
from tests.autotune.simulate import new_store, run_to_the_end

LLAMA_70B = {
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "torch_dtype": "bfloat16",
}
Capture = pytest.CaptureFixture[str]


def not_started(*_: Any, **__: Any) -> None:
    raise AssertionError("Ray was started")


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune.tuning, "_run", not_started)


def run(*arguments: object) -> int:
    return command_line(main, [str(argument) for argument in arguments])


def test_an_impossible_search_says_how_many_nodes_it_needs(
    no_ray: None, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "run"
    model = json.dumps(LLAMA_70B)
    assert run("--model", model, "--nodes", 1, "--out", out) == 3
    captured = capsys.readouterr()
    assert captured.err.startswith("error: model needs at least 4 nodes of 8: on 1 node of 8 h100")
    assert "--explore-anyway" in captured.err and captured.err.count("\n") == 1
    assert not out.exists()
    with pytest.raises(AssertionError, match="Ray was started"):
        run("--model", model, "--nodes", 1, "--out", out, "--explore-anyway")
    with pytest.raises(AssertionError, match="Ray was started"):
        run("--model", model, "--nodes", 4, "--out", out)
    with pytest.raises(NothingFits, match="needs at least 4 nodes"):
        autotune.tune(model=model, nodes=1, out=out)


def test_a_finished_search_is_shown_without_ray(
    no_ray: None, tmp_path: Path, capsys: Capture
) -> None:
    finished = run_to_the_end(new_store(tmp_path, trainable="simulated", max_trials=4))
    assert run("--resume", tmp_path, "--json") == 0
    captured = capsys.readouterr()
    assert captured.out == (tmp_path / "best.json").read_text()
    assert json.loads(captured.out).items() > finished.summary().items()
    assert "trials already finished, none is left to run" in captured.err
    assert (tmp_path / "export" / "launch.sh").exists()


def test_what_follows_from_the_last_trial_is_written_after_a_kill(
    no_ray: None, tmp_path: Path
) -> None:
    """A search killed just after its last trial's file was written: best.json and pruned.parquet
    are those of the trial before."""
    request = {"trainable": "simulated", "max_trials": 12, "search": "random"}
    finished = run_to_the_end(new_store(tmp_path, **request))
    pruned = finished.store.pruned()
    assert pruned
    finished.store.write_pruned(pruned[:-1])
    (tmp_path / "best.json").unlink()
    assert run("--resume", tmp_path) == 0
    assert open_run(tmp_path).pruned() == pruned
    best = json.loads((tmp_path / "best.json").read_text())
    assert best.items() > finished.summary().items()


def test_resuming_removes_what_a_killed_search_was_writing(no_ray: None, tmp_path: Path) -> None:
    run_to_the_end(new_store(tmp_path, trainable="simulated", max_trials=4, search="grid"))
    torn = tmp_path / "trials" / ".0005.parquet.77.tmp"
    torn.write_bytes(b"PAR1")
    assert run("--resume", tmp_path) == 0
    assert not torn.exists()


def test_a_run_that_is_in_use_is_not_resumed(no_ray: None, tmp_path: Path, capsys: Capture) -> None:
    run_to_the_end(new_store(tmp_path, trainable="simulated", max_trials=4, search="grid"))
    with sole_user(tmp_path):
        assert run("--resume", tmp_path) == 2
    assert "--resume: another search is at work in" in capsys.readouterr().err


def test_a_resumed_search_may_be_given_more_trials(
    no_ray: None, tmp_path: Path, capsys: Capture
) -> None:
    run_to_the_end(new_store(tmp_path, trainable="simulated", max_trials=4, search="grid"))
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(AssertionError, match="Ray was started"):
        run("--resume", tmp_path, "--max-trials", 5)
    assert run("--resume", tmp_path, "--max-trials", 3) == 2
    expected = "error: --max-trials must be at least the 4 that the search was begun with, got 3\n"
    assert capsys.readouterr().err == expected
    assert run("--resume", tmp_path, "--gpu-hours", 0.0001) == 0, "there was no limit before"
    assert (tmp_path / "run.json").read_bytes() == before
    assert open_run(tmp_path).request.max_trials == 4


def test_a_dry_run_as_json_has_nothing_else_on_the_standard_output(
    no_ray: None, capsys: Capture
) -> None:
    assert run("--space", "llm13b", "--dry-run", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["predicted"] is True and content["layouts"] > 1000
    assert content["expected_seconds"] > 0


def test_an_address_is_for_real_trials(no_ray: None, tmp_path: Path, capsys: Capture) -> None:
    simulated = ("--space", "llm13b", "--trainable", "simulated", "--out", tmp_path / "run")
    assert run(*simulated, "--address", "auto") == 2
    assert "--address must be given for real trials only" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["local", "ray://127.0.0.1:10001"])
def test_an_address_of_another_kind_is_refused_before_ray_is_imported(
    no_ray: None, tmp_path: Path, capsys: Capture, address: str
) -> None:
    assert run("--space", "tiny", "--address", address, "--out", tmp_path / "run") == 2
    line = capsys.readouterr().err
    assert line.startswith("error: --address must be ") and repr(address) in line
    assert line.count("\n") == 1


def test_an_interrupt_tells_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(autotune.tuning, "_run", interrupted)
    assert run("--space", "llm13b", "--out", tmp_path / "new") == 130
    assert "interrupted; no search was begun" in capsys.readouterr().out
    begun = tmp_path / "begun"
    run_to_the_end(new_store(begun, trainable="simulated", max_trials=4), trials=2)
    assert run("--resume", begun, "--max-trials", 9) == 130
    expected = f"interrupted; continue with --resume {begun} --max-trials 9"
    assert expected in capsys.readouterr().out


def test_an_error_names_other_options_as_options(
    no_ray: None, tmp_path: Path, capsys: Capture
) -> None:
    out = ("--out", tmp_path / "run")
    assert run("--space", "llm13b", "--trainable", "deepspeed", *out) == 2
    line = capsys.readouterr().err
    assert "give the --address of a Ray cluster" in line
    assert "simulate the trials (--trainable simulated)" in line
    assert run("--space", "tiny", "--data", tmp_path, "--synthetic-data", *out) == 2
    assert "--data must not be given with --synthetic-data" in capsys.readouterr().err
    assert run("--resume", tmp_path, "--whole-trials") == 2
    assert "--reduced-trials/--whole-trials cannot be changed" in capsys.readouterr().err


def test_a_run_directory_is_not_taken_twice(no_ray: None, tmp_path: Path, capsys: Capture) -> None:
    new_store(tmp_path / "run")
    assert run("--space", "tiny", "--out", tmp_path / "run") == 2
    assert "--out: " in (line := capsys.readouterr().err) and "already holds a run" in line
    with pytest.raises(InputError, match=r"out: .*already holds a run"):
        autotune.tune("tiny", out=tmp_path / "run")

"""The link prediction recipe stopped, gone on with and run over an older folder; by one process and two."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from recipes_helpers import OUTPUTS, RECIPE, SIZES, Arguments, Overall, Run, files, in_processes, same_weights
from safetensors.torch import load_file

import croppable

# ---------------------------------------------------------------------- overwriting, stopping and going on


def stop_at(kge: ModuleType, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let this process get a SIGTERM while it makes the batch of a step."""
    batches = kge.training_batches

    def interrupted(config: Any, task: Any, accelerator: Any, start: int) -> Iterator[dict[str, Any]]:
        for i, batch in enumerate(batches(config, task, accelerator, start), start + 1):
            if i == step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(kge, "training_batches", interrupted)


def test_a_signal_saves_and_says_how_to_go_on_and_resuming_is_exact(
    plain: tuple[Path, Any], run: Run, kge: ModuleType, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(kge, patch, 19)
        assert run(output) == 130
    assert "interrupted after step 19; go on with the same command and --resume_from_checkpoint latest" in (
        capsys.readouterr().out
    )
    assert [path.name for path in (output / "training_states").iterdir()] == ["step-00000019"]
    assert not (output / "config.json").exists()
    assert run(output, resume_from_checkpoint="latest") == 0
    for name in ("metrics.json", "history.json"):
        assert (output / name).read_bytes() == (plain[0] / name).read_bytes()
    assert same_weights(output, plain[0])


def test_resuming_is_exact_where_larger_sizes_are_joined_of_parts(
    run: Run, kge: ModuleType, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"relations": "own", "trunk": 4, "mutual": 0, "w1": 0}
    assert run(tmp_path / "whole", **settings) == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_at(kge, patch, 19)
        assert run(tmp_path / "out", **settings) == 130
    assert run(tmp_path / "out", **settings, resume_from_checkpoint="latest") == 0
    assert same_weights(tmp_path / "out", tmp_path / "whole")


def test_states_can_be_resumed_from_a_folder_by_its_name(
    plain: tuple[Path, Any], run: Run, tmp_path: Path
) -> None:
    assert run(tmp_path / "first", checkpointing_steps=10, max_train_steps=20) == 0
    states = tmp_path / "first" / "training_states"
    assert run(tmp_path / "second", resume_from_checkpoint=states) == 0
    assert json.loads((tmp_path / "second" / "history.json").read_text())[-1]["step"] == 32


def test_separate_training_goes_on_with_the_size_where_it_stopped(
    run: Run, kge: ModuleType, overall: Overall, tmp_path: Path, capsys: Any
) -> None:
    assert run(tmp_path / "whole", objective="separate") == 0
    output, sizes_trained = tmp_path / "out", []
    train = kge.train

    def stop_in_size_4(config: Any, task: Any, accelerator: Any, sizes: tuple[int, ...]) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            if sizes == (4,):
                stop_at(kge, patch, 7)
            return train(config, task, accelerator, sizes)

    def note(config: Any, task: Any, accelerator: Any, sizes: tuple[int, ...]) -> Any:
        sizes_trained.append(sizes)
        return train(config, task, accelerator, sizes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kge, "train", stop_in_size_4)
        assert run(output, objective="separate") == 130
    assert (output / "size-2" / "config.json").exists()
    assert not (output / "size-4").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kge, "train", note)
        assert run(output, objective="separate", resume_from_checkpoint="latest") == 0
    assert sizes_trained == [(4,), (8,)]
    assert "size 2 is finished already" in capsys.readouterr().out
    for name in ("metrics.json", "history.json"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for size in SIZES:
        assert same_weights(output / f"size-{size}", tmp_path / "whole" / f"size-{size}")


def test_an_overwritten_folder_keeps_nothing_that_the_new_run_could_be_taken_for(
    run: Run, kge: ModuleType, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "out"
    assert run(output, objective="separate", checkpointing_steps=30) == 0
    assert run(output, overwrite_output_dir=True, checkpointing_steps=30) == 0
    (output / "notes").write_text("mine")
    assert not list(output.glob("size-*"))
    with pytest.MonkeyPatch.context() as patch:
        stop_at(kge, patch, 5)
        assert run(output, overwrite_output_dir=True, objective="separate") == 130
    assert not {"config.json", "metrics.json", "sizes.png"} & files(output)
    states = {str(path.relative_to(output)) for path in (output / "training_states").rglob("step-*")}
    assert states == {"training_states/size-2/step-00000005"}
    assert (output / "notes").read_text() == "mine"


@pytest.mark.parametrize(
    "settings", [{"sizes": [2, 4]}, {"optimizer": "adam"}, {"lr_scheduler_type": "linear"}]
)
def test_resuming_with_other_flags_is_one_clear_line(
    run: Run, tmp_path: Path, capsys: Any, settings: dict[str, Any]
) -> None:
    assert run(tmp_path / "out", checkpointing_steps=16) == 0
    capsys.readouterr()
    assert run(tmp_path / "out", resume_from_checkpoint="latest", **settings) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "resume with the flags that it was started with" in error


# ---------------------------------------------------------------------------------------- two processes

BY_RANK = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
folder, stop = sys.argv.pop(1), int(sys.argv.pop(1))
import kge
from safetensors.torch import save_file

train, batches = kge.train, kge.training_batches

def keep_weights(config, task, accelerator, sizes):
    model, result = train(config, task, accelerator, sizes)
    path = f"{folder}/rank-{accelerator.process_index}-of-{accelerator.num_processes}.safetensors"
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, path)
    return model, result

def interrupted(config, task, accelerator, start):
    for i, batch in enumerate(batches(config, task, accelerator, start), start + 1):
        if i == stop and accelerator.process_index == 1:  # the signal reaches one process only
            os.kill(os.getpid(), signal.SIGTERM)
        yield batch

kge.train, kge.training_batches = keep_weights, interrupted
sys.exit(kge.main())
"""


@pytest.fixture
def by_rank(arguments: Arguments, tmp_path: Path) -> Callable[..., Any]:
    """Run the recipe on two processes, each of which keeps its weights in the folder's ranks/."""

    def start(output: Path, stop: int = 0, **settings: Any) -> Any:
        ranks = output.parent / f"{output.name}-ranks"
        ranks.mkdir(exist_ok=True)
        script = tmp_path / "by_rank.py"
        script.write_text(BY_RANK)
        given = arguments(output, per_device_train_batch_size=8, **settings)
        return in_processes(2, [str(script), str(RECIPE.parent), str(ranks), str(stop), *given])

    return start


def assert_equal_ranks(output: Path) -> None:
    paths = sorted(output.parent.glob(f"{output.name}-ranks/*"))
    assert [path.name for path in paths] == [f"rank-{rank}-of-2.safetensors" for rank in (0, 1)]
    first, second = map(load_file, paths)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_share_the_work_and_end_with_equal_weights(
    by_rank: Callable[..., Any], run: Run, tmp_path: Path
) -> None:
    process = by_rank(tmp_path / "out", objective="nested")
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("2 process(es) on cpu") == 1
    assert files(tmp_path / "out") == OUTPUTS
    assert_equal_ranks(tmp_path / "out")
    # Two batches of 8 are the one batch of 16: only the order of sums differs. (MED's weights are normalised
    # over the batch of a process, so there the two are not the same objective.)
    assert run(tmp_path / "alone", objective="nested") == 0
    alone, shared = croppable.load(tmp_path / "alone"), croppable.load(tmp_path / "out")
    torch.testing.assert_close(shared.entity, alone.entity, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_two_processes_stop_together_and_resume_exactly(by_rank: Callable[..., Any], tmp_path: Path) -> None:
    settings = {"negatives": "uniform", "num_negatives": 5, "learnable_weights": True, "loss": "bce"}
    assert by_rank(tmp_path / "whole", **settings).returncode == 0
    stopped = by_rank(tmp_path / "out", stop=13, **settings)
    assert stopped.returncode != 0
    assert "interrupted after step 13" in stopped.stdout
    states = tmp_path / "out" / "training_states"
    assert [path.name for path in states.iterdir()] == ["step-00000013"]
    resumed = by_rank(tmp_path / "out", resume_from_checkpoint="latest", **settings)
    assert resumed.returncode == 0, resumed.stderr
    assert_equal_ranks(tmp_path / "out")
    assert same_weights(tmp_path / "out", tmp_path / "whole")
    assert (tmp_path / "out" / "metrics.json").read_bytes() == (
        tmp_path / "whole" / "metrics.json"
    ).read_bytes()

"""The GLUE recipe stopped, gone on with and run over an older folder; and by two processes."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from glue_runs import Run, arguments, same_weights, values
from recipes_helpers import RECIPES, in_processes

pytest_plugins = ["glue_fixtures"]


def test_a_resumed_separate_run_skips_finished_sizes(
    run_glue: Run, glue: ModuleType, workspace: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    flags = {"objective": "separate", "max_train_steps": 6}
    whole = run_glue(to="whole", **flags)
    train, trained = glue.train, []

    def stopped_in_the_largest(config: Any, data: Any, model: Any, part: Any, *rest: Any) -> Any:
        trained.append(part.sizes)
        result = train(config, data, model, part, *rest)
        return result._replace(stopped="interrupted") if trained == [(1,), (2,), (4,)] else result

    monkeypatch.setattr(glue, "train", stopped_in_the_largest)
    parts = whole.parent / "parts"
    assert glue.run(glue.parse_config(arguments(workspace, parts, **flags))) == 130
    assert not (parts / "metrics.json").exists()
    run_glue(to="parts", resume_from_checkpoint="latest", **flags)
    assert trained == [(1,), (2,), (4,), (4,)]
    assert "size 2 is finished already" in capsys.readouterr().out
    for name in ("metrics.json", "history.json"):
        assert json.loads((parts / name).read_text()) == json.loads((whole / name).read_text())
    assert set(json.loads((parts / "costs.json").read_text())) == {"1", "2", "4"}
    card = (parts / "README.md").read_text()
    assert "| 1 | width-16 |" in card
    assert "at 3 widths, each by itself" in card
    run_glue(to="parts", overwrite_output_dir=True, **flags)  # a fresh run takes nothing over
    assert trained[4:] == [(1,), (2,), (4,)]


@pytest.mark.parametrize("killed_in", [1, 2])
def test_largest_first_resumes_in_either_part(
    run_glue: Run, glue: ModuleType, workspace: Path, monkeypatch: pytest.MonkeyPatch, killed_in: int
) -> None:
    flags = {"max_train_steps": 8, "largest_first": 0.5, "distill": 1.0, "checkpointing_steps": 2,
             "sizes": [2, 4], "latency_repeats": 0, "save_crops": False}  # fmt: skip
    whole = run_glue(to="whole", **flags)
    fit, fits = glue.fit, []

    def killed(step: Any, batches: Any, **settings: Any) -> Any:
        def two(first: int) -> Iterator[Any]:
            yield from itertools.islice(batches(first), 2)
            raise KeyboardInterrupt

        fits.append(settings["num_steps"])
        return fit(step, two if len(fits) == killed_in else batches, **settings)

    parts = whole.parent / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(glue, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            glue.run(glue.parse_config(arguments(workspace, parts, **flags)))
    assert fits == [4] * killed_in
    run_glue(to="parts", resume_from_checkpoint="latest", **flags)
    assert json.loads((parts / "history.json").read_text()) == json.loads(
        (whole / "history.json").read_text()
    )
    assert same_weights(whole, parts)


def test_a_fresh_run_removes_what_an_earlier_one_left(run_glue: Run) -> None:
    output = run_glue(sizes=[1, 4], max_train_steps=2, checkpointing_steps=1)
    (output / "mine.txt").write_text("x")
    run_glue(sizes=[2, 4], max_train_steps=2, overwrite_output_dir=True)
    assert {path.name for path in output.glob("width-*")} == {"width-32"}
    assert not (output / "training_states").exists()
    assert (output / "mine.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        {"objective": "random", "num_train_epochs": 24},
        {"schedule": "pair", "learnable_weights": True, "distill": 1.0, "hidden_distill": 0.1},
        {"gradient_accumulation_steps": 2, "eval_epochs": 1, "early_stopping_patience": 4},
    ],
    ids=str,
)
def test_two_processes(workspace: Path, tmp_path: Path, flags: dict[str, Any]) -> None:
    given = arguments(workspace, tmp_path / "out", per_device_train_batch_size=4, **flags)
    done = in_processes(2, [str(RECIPES / "glue.py"), *given], {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stdout
    assert values(tmp_path / "out")[4] > 0.9


@pytest.mark.slow
def test_a_resumed_run_gives_the_weights_of_an_uninterrupted_one(run_glue: Run) -> None:
    whole = run_glue(to="whole", max_train_steps=12)
    run_glue(to="parts", max_train_steps=12, checkpointing_steps=6, num_train_epochs=1)
    newest = sorted((whole.parent / "parts" / "training_states").iterdir())[-1]
    for path in sorted(newest.iterdir()):
        path.unlink()
    newest.rmdir()  # as if killed between step 6 and the end
    parts = run_glue(to="parts", max_train_steps=12, resume_from_checkpoint="latest")
    assert same_weights(whole, parts)

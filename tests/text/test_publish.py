"""A folder of crops goes to the Hub in one commit, and a crop comes back by its subfolder."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hub_server import TOKEN, Hub
from transformers import PreTrainedModel

from croppable.core import crop
from croppable.hub import HubError, hub_errors
from croppable.text.card import publish, text_card
from croppable.text.encoder import croppable_encoder, save_crops
from croppable.text.glue import TASKS

SCRIPT = """
import json, sys
from croppable.text.card import publish
from transformers import AutoModelForSequenceClassification
publish(sys.argv[1], "me/tiny")
model = AutoModelForSequenceClassification.from_pretrained("me/tiny", subfolder="width-8")
print(json.dumps(model.classifier.weight.tolist()))
"""


def test_a_failed_upload_says_what_to_do(
    make_encoder: Callable[..., PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object, **_kwargs: object) -> None:
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", broken)
    with pytest.raises(HubError, match=r"the connection broke while trying to push to 'me/tiny' \('reset by"):
        publish(tmp_path, "me/tiny")
    with pytest.raises(HubError, match="trying to delete 'me/tiny'"), hub_errors("me/tiny", None, "delete"):
        raise TimeoutError


def test_the_card_tells_one_training_from_several() -> None:
    row = {"dataset": "sst2", "split": "validation", "metric": "accuracy", "value": 0.5}
    given: dict[str, Any] = {"task": TASKS["sst2"], "rows": [{"size": size, **row} for size in (1, 4)],
                             "costs": {}, "folders": {1: "width-8", 4: ""}}  # fmt: skip
    assert "Fine-tuned once on sst2 at 2 widths. Every width is a plain transformers model, the" in text_card(
        **given
    )
    assert "Fine-tuned on sst2 at 2 widths, each by itself." in text_card(**given, separate=True)


def test_publish_and_load_a_subfolder(make_encoder: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    model = croppable_encoder(make_encoder("bert"))
    folder = tmp_path / "model"
    save_crops(model, (1, 2, 4), folder)
    (folder / "training_states").mkdir()
    (folder / "training_states" / "tensors.safetensors").write_bytes(b"private")
    with Hub() as hub:
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1,localhost",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(folder)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        repository = hub.repositories["me/tiny"]
        files = set(repository.trees[repository.branches["main"]])
    assert files >= {"config.json", "model.safetensors", "width-8/model.safetensors", "width-16/config.json"}
    assert not any("training_states" in name for name in files)
    assert torch.equal(torch.tensor(json.loads(done.stdout)), crop(model, 1).classifier.weight)

"""A folder of crops goes to the Hub in one commit, and a crop comes back by its subfolder."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from hub_server import TOKEN, Hub
from transformers import PreTrainedModel

from croppable.core import crop
from croppable.text.encoder import croppable_encoder, save_crops

SCRIPT = """
import json, sys
from croppable.text.card import publish
from transformers import AutoModelForSequenceClassification
publish(sys.argv[1], "me/tiny")
model = AutoModelForSequenceClassification.from_pretrained("me/tiny", subfolder="width-8")
print(json.dumps(model.classifier.weight.tolist()))
"""


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

"""A process with the real Hub client, pointed at the stand-in, and what the Hub's tests share.

The fixtures are in hub_fixtures.py.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hub_server import TOKEN, Hub

from croppable.kge.model import KGEModel

ENTITIES, SIZES = 2_000, tuple(range(10, 641, 10))
NewClient = Callable[..., "Client"]

# The client reads its environment when it is imported, so it lives in a process of its own: one for all
# tests, which runs what it is sent and answers with the value of `result` or with the error.
WORKER = """
import io, json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
import torch, croppable, croppable.hub
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 20_000
# The client reads by ten megabytes; small files shall be resumed in the middle too.
for line in sys.stdin:
    space = {"croppable": croppable, "torch": torch}
    try:
        exec(json.loads(line), space)
        answer = {"result": space.get("result")}
    except Exception as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer), file=answers, flush=True)
"""


class Client:
    """A process with croppable and huggingface_hub, pointed at the stand-in."""

    def __init__(self, hub: Hub, home: Path, **environment: str) -> None:
        self.home = home
        plain = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        self.environment = {
            **plain,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            **environment,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
        )

    def ask(self, code: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def run(self, code: str) -> Any:
        answer = self.ask(code)
        assert "error" not in answer, answer
        return answer["result"]

    def fail(self, code: str) -> dict[str, Any]:
        answer = self.ask(code)
        assert "error" in answer, f"this should have failed: {code}"
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()


def model(seed: int = 0, sizes: tuple[int, ...] = SIZES) -> KGEModel:
    torch.manual_seed(seed)
    return KGEModel(ENTITIES, 5, sizes)


def load(size: int) -> str:
    return (
        f"model = croppable.load('me/countries', size={size})\n"
        f"result = [list(model.entity.shape), model.entity.double().sum().item(), model.labels.entity[7]]"
    )

"""What loading a size costs: bytes and seconds from disk, bytes over the wire, labels.

    python benchmarks/checkpoint_read.py --output docs/results/checkpoint_read.json

A table of 200,000 x 640 float32 at 64 sizes is read at 10, 40 and 160 dims (and in full) from a croppable
checkpoint, and beside it from one row-major safetensors file by its own library (`get_slice`), in one run.
Bytes come from /proc/self/io: `rchar` counts what read() returned, `read_bytes` what came from the disk;
files are dropped from the page cache first (a mapped file is read by page faults, which rchar does not
see). The wire is the real huggingface_hub client against the stand-in of tests/hub_server.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import describe
from safetensors import safe_open
from safetensors.torch import save_file

import croppable
from croppable.kge.model import KGEModel
from croppable.labels import Labels
from croppable.manifest import LABELS

ROWS, SIZES, MEASURED = 200_000, tuple(range(10, 641, 10)), (10, 40, 160, 640)
REPEATS = 5


def io_counters() -> dict[str, int]:
    """Return the process's own read counters."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return {key: int(value) for key, value in (line.split(": ") for line in lines)}


def drop_from_cache(folder: Path) -> None:
    """Ask the kernel to forget the files' pages, so that the next read comes from the disk."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_croppable(folder: Path, size: int) -> torch.Tensor:
    """Load a size; return its entity table."""
    return torch.Tensor(croppable.load(folder, size=size).entity.detach())


def read_row_major(folder: Path, size: int) -> torch.Tensor:
    """Read the first columns of a row-major file."""
    with safe_open(folder / "table.safetensors", "pt") as file:
        table = torch.Tensor(file.get_slice("entity")[:, :size])
        # All columns are the mapped file itself, of which nothing has been read yet.
        return table.clone() if size == SIZES[-1] else table.contiguous()


def measure(read: Any, folder: Path, size: int) -> dict[str, Any]:
    """Read cold ``REPEATS`` times and once warm; return the bytes and the median seconds."""
    cold = []
    for _ in range(REPEATS):
        drop_from_cache(folder)
        before, start = io_counters(), time.perf_counter()
        table = read(folder, size)
        cold.append(time.perf_counter() - start)
        after = io_counters()
        del table
    warm = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        table = read(folder, size)
        warm.append(time.perf_counter() - start)
        del table
    return {
        "size": size,
        "rchar": after["rchar"] - before["rchar"],
        "read_bytes": after["read_bytes"] - before["read_bytes"],
        "cold_seconds": round(statistics.median(cold), 4),
        "warm_seconds": round(statistics.median(warm), 4),
    }


def disk(work: Path) -> tuple[list[dict[str, Any]], Path]:
    """Measure both layouts of the same table."""
    torch.manual_seed(0)
    model = KGEModel(ROWS, 20, SIZES)
    folder, single = work / "croppable", work / "row-major"
    croppable.save(model, folder)
    single.mkdir()
    save_file({"entity": model.entity.detach()}, single / "table.safetensors")
    expected = model.entity.detach().clone()
    del model
    rows = []
    for size in MEASURED:
        for name, read, where in (
            ("croppable", read_croppable, folder),
            ("row-major", read_row_major, single),
        ):
            assert torch.equal(read(where, size), expected[:, :size])
            result = {"layout": name, **measure(read, where, size)}
            allowed = 1.03 * size / SIZES[-1] * ROWS * SIZES[-1] * 4 + 200_000
            rows.append({**result, "allowed_bytes": round(allowed)})
            print(json.dumps(rows[-1]))
    return rows, folder


DOWNLOAD = """
import sys, croppable
croppable.load("me/table", size=int(sys.argv[1]))
"""


def wire(folder: Path, work: Path) -> list[dict[str, Any]]:
    """Count what the real client fetches for each size, each into an empty cache, then again."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from hub_server import TOKEN, Hub

    with Hub() as hub:
        environment = {
            **os.environ,
            **{"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"},
            **{"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            **{"NO_PROXY": "127.0.0.1,localhost"},
        }

        def client(code: str, home: Path, *arguments: str) -> tuple[int, int]:
            start = len(hub.log)
            command = [sys.executable, "-c", code, *arguments]
            subprocess.run(command, env={**environment, "HF_HOME": str(home)}, check=True)
            return hub.sent(start), len(hub.log) - start

        client(f"import croppable; croppable.push_to_hub({str(folder)!r}, 'me/table')", work / "home")
        rows = []
        for size in MEASURED[:-1]:
            home = work / f"home-{size}"
            (sent, requests), (again, _) = (client(DOWNLOAD, home, str(size)) for _ in range(2))
            allowed = round(1.03 * size / SIZES[-1] * ROWS * SIZES[-1] * 4 + 200_000)
            row = {"size": size, "bytes": sent, "requests": requests, "bytes_again": again}
            rows.append({**row, "allowed_bytes": allowed})
            print(json.dumps(rows[-1]))
    return rows


FRESH = """
import json, sys, time
from pathlib import Path
import croppable
from croppable.labels import Labels
def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
folder = Path(sys.argv[1])
"""
PEAK = f"""{FRESH}
croppable.load(folder, size=1)
Path("/proc/self/clear_refs").write_text("5")
memory = status("VmRSS")
model = croppable.load(folder, size=int(sys.argv[2]))
output = sum(tensor.nbytes for tensor in model.state_dict().values())
print(json.dumps({{"output_bytes": output, "peak_bytes": status("VmHWM") - memory}}))
"""
LABEL_READ = f"""{FRESH}
Path("/proc/self/clear_refs").write_text("5")
memory, start = status("VmRSS"), time.perf_counter()
labels = Labels.read(folder, (folder / "labels.safetensors").stat().st_size)
read = time.perf_counter() - start
peak = status("VmHWM") - memory
start = time.perf_counter()
assert labels.entity.index("http://example.org/entity/Q1999999") == 1999999
print(json.dumps({{"seconds": round(read, 3), "peak_bytes": peak,
                  "first_lookup_seconds": round(time.perf_counter() - start, 5)}}))
"""


def fresh(code: str, *arguments: object) -> dict[str, Any]:
    """Run code in a process of its own; return the JSON that it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    return dict(json.loads(done.stdout))


def labels(work: Path) -> dict[str, Any]:
    """Read and check 2,000,000 labels in a fresh process; the median of five."""
    from croppable.segments import write_file

    folder = work / "labels"
    folder.mkdir()
    names = Labels((f"http://example.org/entity/Q{i}" for i in range(2_000_000)), ["relation"])
    nbytes, _ = write_file(folder / LABELS, names.pieces())
    runs = [fresh(LABEL_READ, folder) for _ in range(REPEATS)]
    result = {"labels": 2_000_000, "file_bytes": nbytes}
    result |= {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    print(json.dumps(result))
    return result


def main() -> None:
    """Measure everything and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results/checkpoint_read.json"))
    parser.add_argument("--work_dir", type=Path, default=None, help="where to put a gigabyte of files")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(dir=arguments.work_dir))
    try:
        about = {**describe("torch"), "threads": torch.get_num_threads()}
        rows, folder = disk(work)
        result = {
            "machine": about,
            "table": {"rows": ROWS, "dims": SIZES[-1], "sizes": len(SIZES), "dtype": "float32"},
            "repeats": REPEATS,
            "disk": rows,
            "memory": [{"size": size, **fresh(PEAK, folder, size)} for size in MEASURED],
            "wire": wire(folder, work),
            "labels": labels(work),
        }
    finally:
        shutil.rmtree(work)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()

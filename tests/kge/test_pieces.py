"""Every piece of work is done once, on every kind of thread, and errors come out."""

import threading
from collections.abc import Iterator

import pytest
import torch

from croppable.kge import pieces


@pytest.fixture(params=["openmp", "pool", "one thread"])
def _threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "openmp" and pieces._openmp() is None:
        pytest.skip("this torch does not come with the GNU OpenMP")
    if request.param == "pool":
        monkeypatch.setattr(pieces, "_openmp", lambda: None)
    before = torch.get_num_threads()
    torch.set_num_threads(1 if request.param == "one thread" else 2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
def test_every_piece_is_done_once() -> None:
    done: list[int] = []
    for _ in range(20):
        pieces.on_all_threads(lambda begin, end: done.extend(range(begin, end)), pieces.cut(100, 7))
    assert sorted(done) == sorted(list(range(100)) * 20)


@pytest.mark.usefixtures("_threads")
def test_what_a_piece_raises_comes_out() -> None:
    def work(begin: int, _: int) -> None:
        if begin == 0:
            raise IndexError("piece 0")

    with pytest.raises(IndexError, match="piece 0"):
        pieces.on_all_threads(work, pieces.cut(100, 7))


def test_two_threads_work_at_the_same_time() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    meeting = threading.Barrier(2, timeout=20)  # broken, and an error, if one thread does both
    try:
        pieces.on_all_threads(lambda *_: meeting.wait(), [(0, 1), (1, 2)])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 7, 100])
@pytest.mark.parametrize("largest", [0, 1, 7, 1000])
def test_pieces_cover_everything_in_order(count: int, largest: int) -> None:
    found = pieces.cut(count, largest)
    assert [begin for begin, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == count
    assert all(0 < end - begin <= max(1, largest) for begin, end in found)


def test_little_work_is_not_spread_over_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert pieces.cut(16, 16, pieces.LEAST // 20) == [(0, 16)]
    assert len(pieces.cut(16, 16, pieces.LEAST // 8)) == 2
    assert len(pieces.cut(16, 16, pieces.LEAST)) == 4
    assert len(pieces.cut(16, 2, 1)) == 8  # memory bounds them, however little they do

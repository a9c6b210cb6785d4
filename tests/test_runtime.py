"""Cores that share work, and threads that take turns."""

import threading

import pytest
import torch

from distilhash.runtime import on_each_core


@pytest.fixture
def three_threads():
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


def test_parts_come_in_order_from_threads_of_one_core_each(three_threads):
    meet = threading.Barrier(3, timeout=10)

    def work(part):
        meet.wait()  # three at once
        return part, torch.get_num_threads(), threading.current_thread().name

    for _ in range(2):
        found = on_each_core(work, range(6))
        assert [part for part, _, _ in found] == list(range(6))
        assert {threads for _, threads, _ in found} == {1}
        assert len({name for _, _, name in found}) == 3
    assert torch.get_num_threads() == 3
    assert on_each_core(lambda _: on_each_core(lambda part: part, range(4)), range(2)) == [[0, 1, 2, 3]] * 2


def test_what_goes_wrong_in_a_part_arrives(three_threads):
    with pytest.raises(ZeroDivisionError):
        on_each_core(lambda part: 1 / part, range(3))
    assert on_each_core(lambda part: part, []) == []

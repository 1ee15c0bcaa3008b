"""Who a process is, as launchers say it; what several of them do together is in tests/faults."""

import pytest
import torch

from worldvq.data.sharing import Processes, is_first_process, local_device
from worldvq.errors import UsageError


def test_alone(monkeypatch):
    for given in ({}, {"RANK": "0", "WORLD_SIZE": "1"}):
        for name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        processes = Processes()
        assert (processes.index, processes.count, processes.is_first) == (0, 1, True) and is_first_process()
        processes.wait_for_first()
        processes.wait_for_others()


@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_others_that_cannot_be_found_are_a_mistake_of_the_launcher(monkeypatch, missing):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    with pytest.raises(UsageError, match=rf"WORLD_SIZE is 2.*{missing}.*accelerate launch"):
        Processes()
    assert not is_first_process()


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert local_device("auto") == "auto"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [local_device(name) for name in ("auto", "cuda", "cuda:0", "cpu")] == ["cuda:1", "cuda:1", "cuda:0", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local_device("auto") == "auto"

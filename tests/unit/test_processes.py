"""Who a process is, as launchers say it; what several of them do together is in tests/faults."""

import pytest
import torch

from worldvq.data.sharing import Processes, is_first_process
from worldvq.errors import RunError, UsageError
from worldvq.nn.devices import local_device, resolve_device
from worldvq.training.processes import make_accelerator


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


@pytest.mark.parametrize(
    ("says", "shown"), [("", "RuntimeError"), ("\nno answer\nException raised from poll:\nframe #0", "no answer")]
)
def test_of_what_torch_says_the_first_line_is_shown(monkeypatch, says, shown):
    def fails(*_, **__):
        raise RuntimeError(says)

    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("worldvq.data.sharing.TCPStore", fails)
    with pytest.raises(RunError, match=rf"^cannot reach the first process at 127\.0\.0\.1:1: {shown}$"):
        Processes()
    monkeypatch.setattr(torch, "zeros", fails)
    with pytest.raises(UsageError, match=rf"^device 'cpu' cannot be used \({shown}\): give"):
        resolve_device("cpu")


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert local_device("auto") == "auto"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [local_device(name) for name in ("auto", "cuda", "cuda:0", "cpu")] == ["cuda:1", "cuda:1", "cuda:0", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local_device("auto") == "auto"


def test_training_on_a_device_by_name(monkeypatch):
    assert make_accelerator("auto", device="cpu").device == torch.device("cpu")
    with pytest.raises(UsageError, match="device 'gpu' is not there"):
        make_accelerator("no", device="gpu")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UsageError, match="device 'cpu:0': processes take a GPU each: leave it out, or say cpu"):
        make_accelerator("no", device="cpu:0")

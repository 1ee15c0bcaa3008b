"""The training loop: resuming, the schedule, refusals, and two processes against one."""

import json
import subprocess
import sys

import pytest
import torch
from support import programs
from support.batches import Batches
from support.tokenizers import make_tokenizer

from worldvq.errors import CorruptFileError, RunError, UsageError
from worldvq.files.weights import hash_module, load_module, read_tensors, save_module
from worldvq.models.losses import tokenizer_loss
from worldvq.nn.devices import resolve_precision
from worldvq.nn.memory import memory_errors
from worldvq.training.checkpoints import Checkpoints
from worldvq.training.config import OptimizerConfig, TrainConfig
from worldvq.training.fit import fit
from worldvq.training.loop import Loop, learning_rate
from worldvq.training.optimizers import make_optimizer
from worldvq.training.processes import make_accelerator


def config(**changes):
    return TrainConfig(**{"steps": 6, "batch_size": 8, "log_every": 2, "save_every": 3, **changes})


def run(out, **changes):
    return fit(make_tokenizer(), tokenizer_loss, Batches(8), config(**changes), out, summary="test")


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole = run(tmp_path / "whole")

    class Stop(Batches):
        def batch(self, step, rank=0, world=1):
            if step == 5 and 4 in self.seen:
                raise KeyboardInterrupt
            return super().batch(step, rank, world)

    with pytest.raises(KeyboardInterrupt):
        fit(make_tokenizer(), tokenizer_loss, Stop(8), config(), tmp_path / "cut", summary="test")
    assert Checkpoints(tmp_path / "cut" / "checkpoints", 2).steps() == [3]
    resumed = run(tmp_path / "cut")
    assert hash_module(resumed) == hash_module(whole)
    rows = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]  # the fourth step was logged before the cut, and again
    assert {"loss", "psnr", "perplexity", "learning_rate", "clips_per_second", "seconds"} <= rows[-1].keys()


def test_the_largest_seed_trains(tmp_path):
    run(tmp_path, steps=2, seed=2**32 - 1)


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = hash_module(run(tmp_path))
    batches = Batches(8)
    again = fit(make_tokenizer(), tokenizer_loss, batches, config(), tmp_path, summary="test")
    assert hash_module(again) == first and not batches.seen


def test_running_out_of_memory_says_what_takes_less_and_costs_nothing(tmp_path):
    def large(network, clip):
        if network.training and Checkpoints(tmp_path / "checkpoints", 2).steps() == [3]:
            torch.empty(2**60)  # more than any machine has
        return tokenizer_loss(network, clip)

    with pytest.raises(RunError, match=r"^out of memory: .*accumulate=2 instead of 1.*batch_size, now 8; the last ch"):
        fit(make_tokenizer(), large, Batches(8), config(), tmp_path, summary="test")
    assert Checkpoints(tmp_path / "checkpoints", 2).steps() == [3]
    with pytest.raises(RuntimeError, match="another fault"), memory_errors("less"):
        raise RuntimeError("another fault")
    with pytest.raises(UsageError, match=r"^no out of memory$"), memory_errors("less"):
        raise UsageError("no out of memory")


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path):
    def poisoned(network, clip):
        loss, metrics = tokenizer_loss(network, clip)
        return loss * float("nan"), metrics

    network = make_tokenizer()
    before = torch.cat([p.detach().flatten().clone() for p in network.parameters()])
    with pytest.raises(RunError, match=r"step 0.*not finite"):
        fit(network, poisoned, Batches(8), config(), tmp_path, summary="test")
    assert torch.equal(before, torch.cat([p.detach().flatten() for p in network.parameters()]))


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(UsageError, match="batch_size 8 is not divisible"):
        run(tmp_path, accumulate=3)


def test_damaged_checkpoints_are_named(tmp_path):
    run(tmp_path)
    path = tmp_path / "checkpoints" / "step_00000006" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"step_00000006/model\.safetensors"):
        run(tmp_path, steps=9)


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    run(tmp_path, steps=6, save_every=1)
    assert Checkpoints(tmp_path / "checkpoints", 2).steps() == [5, 6]


def test_weights_of_another_model_are_refused(tmp_path):
    save_module(tmp_path / "a.safetensors", make_tokenizer())
    other = make_tokenizer(width=16)
    with pytest.raises(CorruptFileError, match="does not fit"):
        load_module(tmp_path / "a.safetensors", other)
    (tmp_path / "b.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CorruptFileError, match=r"b\.safetensors: not a safetensors file"):
        read_tensors(tmp_path / "b.safetensors")


def test_the_schedule_warms_up_holds_and_falls_to_zero():
    settings = OptimizerConfig(learning_rate=1.0, warmup_steps=10, decay_fraction=0.5)
    rates = [learning_rate(step, step / 100, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[49] == 1.0
    assert rates[75] == pytest.approx(0.5) and 0 < rates[99] < 0.03


def test_the_schedule_may_follow_time_instead_of_steps():
    """As tools/race.py has it: the first of six steps, at the end of its time."""
    net, accelerator = make_tokenizer(), make_accelerator("no")
    wrapped, optimizer = accelerator.prepare(net, make_optimizer(net, OptimizerConfig()))
    loop = Loop(accelerator, wrapped, net, optimizer, tokenizer_loss, Batches(8), config())
    before = {name: value.clone() for name, value in net.named_parameters()}
    loop.update(0, done=1.0)
    assert all(torch.equal(value, before[name]) for name, value in net.named_parameters())
    loop.update(0)
    assert not any(torch.equal(value, before[name]) for name, value in net.named_parameters() if value.ndim > 1)


def test_two_processes_train_as_one(tmp_path):
    """Same global batches, codebook statistics summed over processes: equal within float tolerance."""
    script = programs.ROOT / "tests/support/two_processes.py"
    outcomes = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines=1", "--mixed_precision=no"]
        launch += [f"--num_processes={processes}", "--num_cpu_threads_per_process=1", "--dynamo_backend=no"]
        # On CPUs `accelerate launch` starts several processes only through its "multi GPU" (torchrun) launcher.
        launch += ["--multi_gpu", "--main_process_port=0"] if processes > 1 else ["--cpu"]
        environment = programs.environment(OMP_NUM_THREADS=1, ACCELERATE_USE_CPU="true")
        done = subprocess.run(
            [*launch, str(script), str(out)], capture_output=True, text=True, timeout=600, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        outcomes.append([read_tensors(path) for path in sorted(out.glob("rank*.safetensors"))])
        assert len(outcomes[-1]) == processes
    (one,), (first, second) = outcomes
    for name in one:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)  # codebooks too: identical on all ranks
        torch.testing.assert_close(one[name].float(), first[name].float(), rtol=1e-3, atol=1e-4)


def test_auto_precision_is_bf16_only_where_the_device_multiplies_in_it(monkeypatch):
    cpu = torch.device("cpu")
    for able, expected in (({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx2": True}, "no")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        assert resolve_precision("auto", cpu) == expected
        assert resolve_precision("no", cpu) == "no" and resolve_precision("fp16", cpu) == "fp16"
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert resolve_precision("auto", cpu) == "no" == resolve_precision("auto", torch.device("mps"))


def test_stages_of_one_process_may_differ_in_precision_and_what_is_trained_is_fp32(tmp_path):
    for number, precision in enumerate(("bf16", "no", "bf16")):
        settings = TrainConfig(steps=2, batch_size=4, precision=precision)
        trained = fit(make_tokenizer(), tokenizer_loss, Batches(4), settings, tmp_path / str(number), summary="tiny")
        with torch.no_grad():
            assert trained(torch.randn(1, 3, 16, 16)).frames.dtype == torch.float32

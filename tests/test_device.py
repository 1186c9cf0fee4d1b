"""Which device --gpu names, on machines with and without GPUs."""

import pytest
import torch

from autorep.machine.device import pick_device


@pytest.fixture
def four_gpus(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_an_index_names_that_gpu(four_gpus):
    assert pick_device("2") == torch.device("cuda", 2) and four_gpus == [2]


def test_a_gpu_that_the_machine_does_not_have_is_an_error(four_gpus):
    with pytest.raises(ValueError, match="invalid gpu='7': expected an index from 0 to 3"):
        pick_device("7")
    assert four_gpus == []


def test_of_several_processes_each_takes_the_gpu_of_its_local_rank(four_gpus, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device("0") == torch.device("cuda", 3)
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(ValueError, match="local rank 4 has no GPU of its own: this machine has 4.*nproc_per_node=4"):
        pick_device("0")


def test_a_slurm_task_that_sees_one_gpu_takes_it_and_torchrun_does_not_share_one(four_gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert pick_device("0") == torch.device("cuda", 0)
    monkeypatch.delenv("SLURM_PROCID")
    with pytest.raises(ValueError, match="local rank 3 has no GPU of its own: this machine has 1"):
        pick_device("0")


def test_without_cuda_an_index_warns_and_runs_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="`gpu` 0: this machine has no CUDA device"):
        assert pick_device("0") == torch.device("cpu")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["0,1", "cuda", "", "-1"])
def test_anything_else_is_refused(name):
    with pytest.raises(ValueError, match="expected one index such as 0, or cpu"):
        pick_device(name)

"""Which device --gpu names, on machines with and without GPUs."""

import pytest
import torch

from autorep.device import compiled, pick_device


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
    with pytest.raises(ValueError, match="--gpu 7: this machine has 4 GPUs, from 0 to 3"):
        pick_device("7")
    assert four_gpus == []


def test_under_torchrun_the_local_rank_decides(four_gpus, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device("0") == torch.device("cuda", 3)


def test_without_cuda_an_index_warns_and_runs_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="--gpu 0: no CUDA device here"):
        assert pick_device("0") == torch.device("cpu")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["0,1", "cuda", "", "-1"])
def test_anything_else_is_refused(name):
    with pytest.raises(ValueError, match="is not legal"):
        pick_device(name)


def test_compiling_on_the_cpu_without_a_compiler_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="--compile needs a C.. compiler, and there is no 'no-such-compiler'"):
        compiled(torch.relu, torch.device("cpu"))

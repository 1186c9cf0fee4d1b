"""When the training step is compiled, and what happens where it cannot be."""

import warnings

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._functorch import config as functorch

from autorep.machine import compilation
from autorep.machine.compilation import compiled

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def step(x):
    return 2 * x


@pytest.fixture(autouse=True)
def fresh():
    """Nothing is known of this machine, and nothing was said."""
    def clear():
        compilation._obstacle.cache_clear()
        compilation._warn.cache_clear()
        torch._dynamo.reset()

    clear()
    yield
    clear()


@pytest.fixture
def triton(monkeypatch):
    """A machine whose GPU torch.compile can serve: it calls the step as it is."""
    monkeypatch.setattr(compilation, "_obstacle", lambda device: None)
    monkeypatch.setattr(torch, "compile", lambda function: lambda *args: function(*args))


def test_only_cuda_compiles_without_being_asked(triton):
    assert compiled(step, CPU, None) is step
    assert compiled(step, CPU, False) is step and compiled(step, CUDA, False) is step
    for device, wanted in ((CUDA, None), (CUDA, True), (CPU, True)):
        assert compiled(step, device, wanted) is not step


def test_it_says_once_what_compiling_took(triton, capsys):
    function = compiled(step, CUDA, None)
    assert function(3) == function(3) == 6
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and "--compile false" in said[0] and said[1].startswith("compiled the training step in 0 s")


def test_a_machine_without_triton_warns_once_and_trains_plainly(monkeypatch):
    def no_triton(function):
        def fail(*args):
            raise RuntimeError("Cannot find a working triton installation.\nMore can be found elsewhere.")
        return fail

    monkeypatch.setattr(torch, "compile", no_triton)
    with pytest.warns(UserWarning, match="Cannot find a working triton installation.*`compile`=false") as caught:
        monkeypatch.setattr(torch, "ones", lambda *args, **kwargs: None)
        assert compiled(step, CUDA, None) is step and compiled(step, CUDA, None) is step
    assert len(caught) == 1
    with pytest.raises(ValueError, match="`compile`=true is not possible here: RuntimeError: Cannot find.*leave"):
        compiled(step, CUDA, True)


def test_a_step_that_cannot_be_compiled_runs_as_it_is_unless_it_was_asked_for(triton, monkeypatch):
    def no_backend(function):
        def fail(*args):
            raise BackendCompilerFailed(None, ValueError("no such kernel"), None)
        return fail

    monkeypatch.setattr(torch, "compile", no_backend)
    with pytest.warns(UserWarning, match="no such kernel") as caught:
        function = compiled(step, CUDA, None)
        assert function(3) == function(4) - 2 == 6
    assert len(caught) == 1
    with pytest.raises(BackendCompilerFailed):
        compiled(step, CUDA, True)(3)


def test_errors_of_the_step_itself_are_its_own(triton):
    def broken(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), warnings.catch_warnings(action="error"):
        compiled(broken, CUDA, None)(3)


def test_compiling_on_the_cpu_without_a_compiler_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="not possible here: there is no C.. compiler 'no-such-compiler'"):
        compiled(step, CPU, True)


def test_the_step_is_compiled_under_its_options_and_a_later_failure_falls_back(monkeypatch):
    seen, failing = [], []

    def recording(function):
        def run(*args):
            seen.append(functorch.ban_recompute_materialized_backward)
            if failing:
                raise BackendCompilerFailed(lambda: None, RuntimeError("no more memory"), None)
            return function(*args)
        return run

    monkeypatch.setattr(compilation, "_obstacle", lambda device: None)
    monkeypatch.setattr(torch, "compile", recording)
    function = compiled(step, CUDA, None)
    assert function(3) == 6 and seen == [False] and functorch.ban_recompute_materialized_backward
    failing.append(True)
    with pytest.warns(UserWarning, match="no more memory"):
        assert function(3) == 6
    assert function(4) == 8 and len(seen) == 2

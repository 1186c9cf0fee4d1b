"""The compiled kernels as an operator: registration, arguments, and machines that cannot compile them."""

from __future__ import annotations

import ctypes
import os
import re
import stat
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from kernel_cases import passes, problem

from autorep.config import GateConfig
from autorep.gates import native
from autorep.gates.gated_relu import GatedReLU
from autorep.gates.kernels import gated_relu
from autorep.gates.reference import gated_relu_reference


@pytest.mark.parametrize("last", [False, True])
def test_operator_is_registered_soundly(last):
    x, mask, coefficients, score, _ = problem((3, 4, 5, 6), 2, torch.float32, last)
    for needs in ((True, True, True), (True, False, False)):
        leaves = [t.clone().requires_grad_(n) for t, n in zip((x, coefficients, score), needs, strict=True)]
        for range_3C in (None, torch.tensor([-1.0, 1.0, 0.1])[:, None].expand(3, 4)):
            checked = torch.library.opcheck(torch.ops.autorep.gated_relu, (leaves[0], mask, *leaves[1:], range_3C))
            assert len(checked) == 4 and set(checked.values()) == {"SUCCESS"}  # schema, autograd, shapes, compilation


@pytest.mark.parametrize("config", [GateConfig(degree=2), GateConfig(replacement="identity", degree=1)])
def test_compiles_without_graph_breaks_or_recompiling(config):
    torch._dynamo.reset()
    graphs = []

    def count(module, inputs):
        graphs.append(module)
        return module.forward

    gate = GatedReLU((4, 5, 6), config)
    compiled, counted = (torch.compile(gate, fullgraph=True, backend=backend) for backend in ("aot_eager", count))
    x, _, _, _, grad_y = problem((3, 4, 5, 6), 2, torch.float32)
    x.requires_grad_()
    for keep in (1.0, 0.5, 0.0):
        gate.mask.copy_(torch.rand(4, 5, 6) < keep)
        results = []
        for function in (gate, compiled, counted):
            gate.zero_grad()
            x.grad = None
            y = function(x)
            y.backward(grad_y)
            results.append([y, x.grad, *(p.grad for p in gate.parameters() if p.grad is not None)])
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert len(graphs) == 1


# ---- the arguments of the C++


def test_python_and_cpp_declare_the_same_arguments():
    source = (native._SOURCES / "layout.h").read_text()
    declared = re.findall(r"^  (.+?)(\w+);$", source.split("struct Arguments {\n")[1].split("}")[0], re.MULTILINE)
    kinds = {"int64_t ": ctypes.c_int64, "bool ": ctypes.c_bool, "int ": ctypes.c_int}
    assert [(name, kinds.get(kind, ctypes.c_void_p)) for kind, name in declared] == list(native.Arguments._fields_)
    assert all(kind in kinds or kind.endswith("* ") for kind, _ in declared)


def test_a_misspelt_argument_is_an_error():
    with pytest.raises(AttributeError, match="grad"):
        native.Arguments(grad=None)


# ---- where the library cannot be had


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache of libraries, on disk and in memory."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("AUTOREP_KERNEL", raising=False)
    for cached in (native.load, native._warn):
        cached.cache_clear()
    yield tmp_path
    for cached in (native.load, native._warn):
        cached.cache_clear()


def assert_falls_back(match):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for dtype, degree in ((torch.float32, 2), (torch.float32, 1), (torch.float64, 2)):
            arguments = problem((3, 4, 5, 5), degree, dtype, last=True)
            expected = passes(gated_relu_reference, *arguments)
            assert all(torch.equal(a, b) for a, b in zip(passes(gated_relu, *arguments), expected, strict=True))
    assert len(caught) == 1
    assert match in str(caught[0].message)


def test_no_compiler_warns_once_and_computes_the_same(fresh, monkeypatch):
    monkeypatch.setenv("PATH", str(fresh))
    assert_falls_back("no C++ compiler")


def test_broken_compiler_warns_once_and_leaves_nothing_behind(fresh, monkeypatch):
    compiler = fresh / "c++"
    compiler.write_text("#!/bin/sh\necho 'out of luck' >&2\nexit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{fresh}{os.pathsep}{os.environ['PATH']}")
    assert_falls_back("out of luck")
    assert not list((fresh / "cache" / "autorep").iterdir())


def test_cache_that_cannot_be_written_warns_once(fresh):
    (fresh / "cache").write_text("a file where the folder should be")
    assert_falls_back("TORCH_EXTENSIONS_DIR")


def test_without_a_home_folder_nothing_is_kept(fresh, monkeypatch):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(native.tempfile, "tempdir", str(fresh))
    native._of_this_process.cache_clear()
    assert native._cache_folder() == native._cache_folder() and native._cache_folder().parent == fresh
    native._of_this_process.cache_clear()


def test_the_definition_can_be_forced(fresh, monkeypatch):
    monkeypatch.setenv("AUTOREP_KERNEL", "eager")
    assert native.load(torch.float32, 3) is None
    native.load.cache_clear()
    monkeypatch.setenv("AUTOREP_KERNEL", "fast")
    with pytest.raises(ValueError, match="AUTOREP_KERNEL='fast'.*'eager'"):
        native.load(torch.float32, 3)


def test_compiling_twice_at_once_leaves_one_library(fresh):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: native._library("Float32", 2), range(2))
    assert first == second
    assert list(first.parent.iterdir()) == [first]


@pytest.mark.parametrize("damage", [lambda whole: whole[:len(whole) // 2], lambda whole: bytes(len(whole)),
                                    lambda whole: b""], ids=["cut", "zeroed", "empty"])
def test_a_damaged_library_is_compiled_again(fresh, monkeypatch, damage):
    compiled = []

    def compiler(command, **_):
        compiled.append(command)
        Path(command[command.index("-o") + 1]).write_bytes(b"a library" * 99)

    monkeypatch.setattr(native.subprocess, "run", compiler)
    whole = (library := native._library("Float32", 2)).read_bytes()
    library.write_bytes(damage(whole))
    for _ in range(2):
        assert native._library("Float32", 2).read_bytes() == whole
    assert len(compiled) == 2

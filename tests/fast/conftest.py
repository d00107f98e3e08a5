"""Fixtures for the tests of the fast path."""

import pytest

from spinup.fast import kernels
from spinup.fast.kernels import CompiledMLP, TorchMLP


@pytest.fixture(params=["avx2", "avx512", "torch"])
def mlp_class(request, monkeypatch):
    """The class that evaluates networks, with both vector lengths or without a compiler."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "_kernels", None)
        yield TorchMLP
        return
    compiled, is_long = kernels._kernels, request.param == "avx512"
    if compiled is None:
        pytest.skip("there are no compiled functions here")
    if compiled.use_avx512(is_long) != is_long:
        pytest.skip("this CPU has no AVX-512")
    yield CompiledMLP
    compiled.use_avx512(True)

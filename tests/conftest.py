import os
import signal

import pytest
import torch

# torch.empty is filled with NaN, so that what a kernel forgets to write is seen
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS refuses to be repeatable
torch.use_deterministic_algorithms(True)

# Tests run side by side, and what they start, share the cores, or threads wait for one another.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    share = max(1, torch.get_num_threads() // workers)
    torch.set_num_threads(share)
    os.environ.setdefault("OMP_NUM_THREADS", str(share))


@pytest.fixture(autouse=True)
def restored():
    """Give the next test the instruction set and the threads that this one found."""
    from fastgen.kernels._op import native

    isa, threads = native and native.isa(), torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    if native:
        native.set_isa(isa)


# A shell starts background jobs deaf to Ctrl-C, which the tests of Ctrl-C would wait for.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests of the references take the native module away; test_op asserts that it is there at first.
os.environ.pop("FASTGEN_REQUIRE_NATIVE", None)

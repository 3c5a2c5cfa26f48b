"""The doctor tells what there is, finds a kernel that is wrong, and needs no kernels itself."""

import subprocess
import sys

import cases
import pytest
import torch

from fastgen import doctor, kernels
from fastgen.kernels import _op

native = pytest.mark.skipif(_op.native is None, reason="needs the C++ kernels")


def test_the_report():
    sections = dict(doctor.report())
    assert {"machine", "kernels", "optional packages"} < sections.keys()
    rows = {row[0]: row for section in sections.values() for row in section}
    assert torch.__version__ in rows["torch"][1]
    assert str(torch.get_num_threads()) in rows["threads"][1]
    assert {"wavenet_sample", "wavenet_layer"} < rows.keys()
    if _op.native:
        assert rows["C++ kernels"][1].startswith(_op.native.isa())
        assert rows["C++ threads"][1] == "torch's" or not _op.native.pooled(torch.get_num_threads())
        assert rows["wavenet_sample"][1] == "CPU: C++"
        assert ("CUDA for 8 streams" in rows["wavenet_sample"][2]) == (not _op.native.cuda)
        assert rows["CUDA kernels"][1].startswith("none: " if _op.native.cuda else "built")


def test_what_is_missing_comes_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda package: None)
    rows = {row[0]: " ".join(row) for row in doctor.versions() + doctor.optional()}
    for name, extra in (("soundfile", "audio"), ("av", "audio"), ("pystoi", "metrics")):
        assert f"missing {doctor.OPTIONAL[name][0]}: pip install 'fastgen[{extra}]'" in rows[name]
    assert "pip install triton" in rows["triton"]


def test_a_driver_that_is_too_old_is_told(monkeypatch):
    def granted(*args):
        raise RuntimeError("CUDA driver version is insufficient")

    monkeypatch.setattr(doctor.cluster, "missing", lambda: "")
    monkeypatch.setattr(doctor.cluster, "granted", granted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert doctor.cuda() == "built, but they do not run: CUDA driver version is insufficient"
    monkeypatch.setattr(doctor.cluster, "granted", lambda *args: False)
    assert doctor.cuda() == "built, but the GPU grants no cluster of blocks"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert doctor.cuda() == "built, but for GPUs of capability 9"


@native
def test_the_kernels_pass_on_every_instruction_set():
    isa = _op.native.isa()
    before = torch.get_rng_state()
    found = doctor.self_tests()
    assert [check for check in found if not check.ok] == []
    assert doctor.SELF_TESTS.keys() == set(cases.ops())
    assert len(found) == sum(len(dtypes) for _, dtypes in doctor.SELF_TESTS.values())
    assert _op.native.isa() == isa
    assert torch.equal(torch.get_rng_state(), before)


@native
@pytest.mark.parametrize("broken", ["off", "nan", "raises"])
def test_a_kernel_that_is_wrong_is_found(monkeypatch, broken):
    layer, last = kernels.wavenet_layer, _op.native.isas()[-1]

    def wrong(*args, **options):
        out, skip = layer(*args, **options)
        if _op.native.isa() != last:
            return out, skip
        if broken == "raises":
            raise RuntimeError("no such\ninstruction")
        return out, skip * (1 + 1e-5) if broken == "off" else skip * float("nan")

    monkeypatch.setattr(kernels, "wavenet_layer", wrong)
    failed = [check for check in doctor.self_tests() if not check.ok]
    assert [check.name for check in failed] == ["wavenet_layer float64", "wavenet_layer float32"]
    assert all(f"on {last}" in check.got and "\n" not in check.got for check in failed)


def test_without_the_extension():
    program = """
import sys
sys.modules["fastgen._C"] = None
from fastgen import doctor
assert doctor.self_tests() == []
for title, rows in doctor.report():
    for row in rows:
        print(*row)
"""
    run = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "C++ kernels missing" in run.stdout
    assert "install g++" in run.stdout
    assert "wavenet_sample CPU: reference" in run.stdout

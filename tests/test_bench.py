"""What measures: the choice of constants, the tables, the clock; GPU tests that need no extras."""

import json
import os
import subprocess
import sys
from pathlib import Path

import measure
import pytest
import table

ROOT = Path(__file__).parents[1]
ABSENT = ("tyro", "tqdm", "pystoi", "soundfile", "av", "tensorboard", "matplotlib", "PIL")


class Clock:
    """A clock of calls that are numbers of seconds; what is measured takes so long."""

    def __init__(self, budget):
        self.now, self.budget = 0.0, budget

    def __call__(self, call):
        self.now += call
        return call

    def left(self):
        return self.budget - self.now


def select(seconds, budget=1000.0, preparing=0.0):
    tune, clock = pytest.importorskip("tune"), Clock(budget)

    def prepare(candidate):
        clock.now += preparing
        if isinstance(candidate, str):
            raise RuntimeError(candidate)
        return candidate

    return tune.select(seconds, prepare, clock, clock.left)


def test_the_fastest_wins():
    assert select([3.0, 1.0, 2.0]) == (1, {0: 3.0, 1: 1.0, 2: 2.0})


def test_the_default_stays_unless_it_is_beaten_clearly():
    assert select([1.0, 0.99, 1.5])[0] == 0
    assert select([1.0, 0.97, 1.5])[0] == 1


def test_what_fails_is_skipped():
    assert select(["spills", 2.0, "differs"]) == (1, {0: "spills", 1: 2.0, 2: "differs"})
    assert select(["no", "neither"]) == (0, {0: "no", 1: "neither"})


def test_a_budget_that_ends_keeps_what_was_found():
    best, told = select([3.0, 1.0, 2.0, 0.5], budget=5.0, preparing=2.0)
    assert (best, told) == (1, {0: 3.0, 1: 1.0, 2: 2.0, 3: "not tried: no time left"})
    assert select([3.0, 1.0], budget=0.0) == (0, dict.fromkeys((0, 1), "not tried: no time left"))


def test_candidates_are_held_to_the_default(monkeypatch):
    tune = pytest.importorskip("tune")
    import torch

    from fastgen.kernels import _tuned

    seen = []

    def workload(dtype, device, small):
        c = _tuned.constants("wavenet_layer", {"float32": [{"scale": 1}]}, dtype, None)
        seen.append(c["scale"])
        if c["scale"] == 3:
            raise ValueError("out of\nshared memory")
        return lambda: [torch.full((3,), float(c["scale"] == 2) + 1)]

    monkeypatch.setattr(_tuned, "device_name", lambda device: "A GPU")
    tuner = tune.Tuner("wavenet_layer", "float32", "cpu", True)
    tuner.workload = workload
    tuner.prepare({"scale": 1})()
    with pytest.raises(RuntimeError, match="differs from the default"):
        tuner.prepare({"scale": 2})
    with pytest.raises(RuntimeError, match="ValueError: out of shared memory"):
        tuner.prepare({"scale": 3})
    assert seen == [1, 2, 3]
    assert "A GPU" not in _tuned.WINNERS


def test_every_triton_kernel_has_a_workload():
    aot, bench = pytest.importorskip("aot"), ROOT / "bench"
    for op in aot.triton_files():
        assert "def workload(dtype, device, small):" in (bench / f"bench_{op}.py").read_text()


def test_the_tables(tmp_path):
    row = {"bench": "bench_x", "machine": "A GPU", "columns": {"dtype": "float32", "ms": "1.5"}}
    other = {**row, "columns": {"dtype": "bfloat16", "x eager": "2 | 3"}}
    part = {"part": "tests", "status": "cut off after 9 s", "seconds": 9}
    lines = [json.dumps(row), json.dumps(other), '{"bench": "cut o']
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    (tmp_path / "parts.jsonl").write_text(json.dumps(part) + "\n")
    table.main(tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found == {"parts": [part], "rows": [row, other]}
    text = (tmp_path / "results.md").read_text()
    assert text.splitlines() == [
        "## bench_x",
        "",
        "A GPU",
        "",
        "| dtype    | ms  | x eager |",
        "| -------- | --- | ------- |",
        "| float32  | 1.5 |         |",
        r"| bfloat16 |     | 2 \| 3  |",
        "",
        "## Parts",
        "",
        "| part  | status            | seconds |",
        "| ----- | ----------------- | ------- |",
        "| tests | cut off after 9 s | 9       |",
        "",
    ]


def test_tables_of_nothing(tmp_path):
    table.main(tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == {"parts": [], "rows": []}


def test_the_clock_leaves_out_what_comes_before():
    import time

    assert measure.timed(lambda: time.sleep(0.01), before=lambda: time.sleep(0.2)) < 0.15
    seconds = measure.compare({"a": lambda: time.sleep(0.02), "b": lambda: None}, rounds=3)
    assert seconds["b"] < 0.02 <= seconds["a"]


def test_gpu_tests_and_the_import_need_no_extras():
    code = f"""
import sys
for name in {ABSENT}:
    sys.modules[name] = None
import pytest, fastgen
sys.exit(pytest.main(["-q", "--collect-only", "-m", "gpu", "tests", "bench"]))"""
    command = [sys.executable, "-P", "-c", code]
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "error" not in done.stdout.splitlines()[-1]
    assert "test_on_a_gpu" in done.stdout


STUB = """#!/bin/sh
case "$*" in
*is_available*) echo "" ;;
*"-m pip"*) echo built ;;
*table.py*) exec {python} "$@" ;;
*"-m pytest"*"src/tests"*) sleep 60 ;;
*tune.py*) exit 3 ;;
esac
"""


def test_a_part_that_hangs_or_fails_is_told_and_keeps_no_other_from_running(tmp_path):
    stub = tmp_path / "python"
    stub.write_text(STUB.format(python=sys.executable))
    stub.chmod(0o755)
    for seconds, want in (
        ("16", {"tests": "cut off after ", "bench": "no time left", "tune": "no time left"}),
        ("60", {"tests": "cut off after 2 s", "bench": "passed", "tune": "failed (3): "}),
    ):
        options = {"SECONDS_IN_ALL": seconds, "PYTHON": str(stub), "OUT": str(tmp_path / seconds)}
        options |= {"TESTS_SECONDS": "2"} if seconds == "60" else {}
        run = subprocess.run(
            ["bash", ROOT / "bench" / "gpu.sh"],
            env={**os.environ, **options},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert run.returncode == 1, run.stdout + run.stderr
        found = json.loads((tmp_path / seconds / "results.json").read_text())["parts"]
        status = {part["part"]: part["status"] for part in found}
        assert list(status) == ["build", "tests", "bench", "tune", "sanitizer"]
        assert status["build"] == "passed", (tmp_path / seconds / "build.log").read_text()
        for part, start in want.items():
            assert status[part].startswith(start), status
            assert f"not passed: {part}" in run.stdout or start == "passed"
        assert "| tests " in (tmp_path / seconds / "results.md").read_text()
        names = [f.name for f in (tmp_path / seconds).iterdir()]
        assert len(names) <= 8

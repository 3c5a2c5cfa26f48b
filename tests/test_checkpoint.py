"""A checkpoint comes back as it was written, and a bad one gives one clear error."""

import json
import os
import resource
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fastgen.checkpoint import CheckpointError, Folder, latest, load, restore, save

TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "bias": torch.tensor(0.5, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
    "count": torch.tensor([-1, 2**60]),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "flag": torch.tensor([True, False]),
}
META = {"model": "Toy", "config": {"layers": 2, "name": "é"}, "step": 3}


@pytest.fixture
def path(tmp_path):
    save(tmp_path / "a.safetensors", TENSORS, META)
    return tmp_path / "a.safetensors"


def equal(a, b):
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def packed(header, data=b"", length=None):
    """A file's bytes from its header (JSON, or raw bytes) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def with_meta(text, **entries):
    return {"__metadata__": {"fastgen": text}, **entries}


def outcome(path):
    """(tensors, None) or (None, message) of a file that may be anything."""
    try:
        tensors, meta = load(path)
        return tensors, None if isinstance(meta, dict) else "meta is no object"
    except CheckpointError as error:
        return None, str(error)


def test_round_trip(path):
    tensors, meta = load(path)
    assert equal(tensors, TENSORS)
    assert meta == META


def test_any_layout_and_shared_memory(tmp_path):
    base = torch.randn(4, 6, requires_grad=True)
    tensors = {
        "a": base,
        "b": base,
        "t": base.t(),
        "part": base[1:, ::2],
        "e": base[:1].expand(3, 6),
    }
    save(tmp_path / "a", tensors, {})
    assert equal(load(tmp_path / "a")[0], {k: t.detach() for k, t in tensors.items()})


def test_equal_state_gives_equal_bytes(path, tmp_path):
    save(tmp_path / "b", dict(reversed(TENSORS.items())), META)
    assert (tmp_path / "b").read_bytes() == path.read_bytes()


def test_safetensors_reads_what_we_write(path):
    assert equal(safetensors.torch.load_file(path), TENSORS)


def test_loaded_tensors_do_not_follow_the_file(path):
    tensors, _ = load(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert equal(tensors, TENSORS)


@pytest.mark.parametrize(
    ("tensors", "meta", "error"),
    [
        ({}, {"a": float("nan")}, ValueError),
        ({}, {"a": torch.zeros(1)}, ValueError),
        ({}, [1], ValueError),
        ({"__metadata__": torch.zeros(1)}, {}, ValueError),
        ({"a": torch.zeros(1, dtype=torch.complex128)}, {}, TypeError),
    ],
)
def test_save_refuses_what_could_not_be_read(path, tensors, meta, error):
    before = path.read_bytes()
    with pytest.raises(error, match=str(path)):
        save(path, tensors, meta)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("press", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_failing_save_leaves_the_old_file(path, press, monkeypatch):
    def fsync(descriptor):
        raise press

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(type(press) if isinstance(press, OSError) else press):
        save(path, {"a": torch.zeros(9)}, {})
    monkeypatch.undo()
    assert equal(load(path)[0], TENSORS)
    assert os.listdir(path.parent) == [path.name]


def test_full_disk(path):
    """The limit on a file's size stands for the disk's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match=str(path)):
            save(path, {"a": torch.zeros(9999)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert equal(load(path)[0], TENSORS)
    assert os.listdir(path.parent) == [path.name]


def test_truncation_at_every_byte(path):
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=str(path)):
            load(path)
    path.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=f"expected {len(data)} bytes, got {len(data) - 1}"):
        load(path)


def test_trailing_bytes(path):
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match=str(path)):
        load(path)


def test_file_larger_than_its_header_says_is_not_read(path):
    size = path.stat().st_size
    os.truncate(path, 1 << 40)
    with pytest.raises(CheckpointError, match=f"expected {size} bytes, got {1 << 40}"):
        load(path)


DEEP = "[" * 100_000
ABUSE = {
    "zeros": bytes(8),
    "not safetensors": b"RIFF\0\0\0\0WAVEfmt ",
    "length 2^63": packed({}, length=2**63),
    "length 2^64 - 1": packed({}, length=2**64 - 1),
    "length past the end": packed(with_meta("{}"), length=400),
    "length too short": packed(with_meta("{}"), length=9),
    "length of a huge header": packed({}, bytes(1000), length=10**9),
    "list": packed([]),
    "null": packed(b"null"),
    "number": packed(b"1" * 5000),
    "not UTF-8": packed(b'{"\xff": 1}'),
    "UTF-16": packed(json.dumps(with_meta("{}")).encode("utf-16")),
    "deep list": packed(DEEP.encode()),
    "deep object": packed(b'{"a":' * 100_000),
    "duplicate name": packed(
        b'{"__metadata__":{"fastgen":"{}"},"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2),
        bytes(4),
    ),
    "duplicate field": packed(
        b'{"__metadata__":{"fastgen":"{}"},"a":{"dtype":"F32","dtype":"F32","shape":[1],'
        b'"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "duplicate meta": packed(b'{"__metadata__":{"fastgen":"{}","fastgen":"{}"}}'),
    "overlap": packed(with_meta("{}", a=entry(), b=entry()), bytes(4)),
    "partial overlap": packed(with_meta("{}", a=entry(), b=entry(offsets=(2, 6))), bytes(6)),
    "hole": packed(with_meta("{}", a=entry(), b=entry(offsets=(8, 12))), bytes(12)),
    "reversed offsets": packed(with_meta("{}", a=entry(offsets=(4, 0))), bytes(4)),
    "negative offset": packed(with_meta("{}", a=entry(offsets=(-4, 0))), bytes(4)),
    "offset past the end": packed(with_meta("{}", a=entry(shape=[2], offsets=(0, 8))), bytes(4)),
    "three offsets": packed(with_meta("{}", a=entry(offsets=(0, 4, 8))), bytes(4)),
    "size overflow": packed(with_meta("{}", a=entry(shape=[2**62, 8])), bytes(4)),
    "size wraps to the right one": packed(
        with_meta("{}", a=entry(shape=[2**32, 2**32], offsets=(0, 0)))
    ),
    "size past int64, but empty": packed(
        with_meta("{}", a=entry(shape=[2**64 - 1, 0], offsets=(0, 0)))
    ),
    "size past uint64": packed(with_meta("{}", a=entry(shape=[2**70])), bytes(4)),
    "negative size": packed(with_meta("{}", a=entry(shape=[-1])), bytes(4)),
    "fractional size": packed(with_meta("{}", a=entry(shape=[1.5])), bytes(4)),
    "shape is a string": packed(with_meta("{}", a={**entry(), "shape": "1"}), bytes(4)),
    "no shape": packed(with_meta("{}", a={"dtype": "F32", "data_offsets": [0, 4]}), bytes(4)),
    "unknown dtype": packed(with_meta("{}", a=entry("F31")), bytes(4)),
    "dtype that torch lacks": packed(with_meta("{}", a=entry("F6_E2M3", [4], [0, 3])), bytes(3)),
    "no metadata": packed({"a": entry()}, bytes(4)),
    "null metadata": packed({"__metadata__": None}),
    "metadata without our key": packed({"__metadata__": {"format": "pt"}}),
    "metadata is a list": packed({"__metadata__": []}),
    "meta is no string": packed({"__metadata__": {"fastgen": {}}}),
    "meta is no JSON": packed(with_meta("{")),
    "meta is a list": packed(with_meta("[]")),
    "meta is deep": packed(with_meta('{"a":' + DEEP)),
    "meta has NaN": packed(with_meta('{"a": NaN}')),
    "meta has a long number": packed(with_meta('{"a": ' + "1" * 5000 + "}")),
    "meta has a duplicate key": packed(with_meta('{"a": 1, "a": 2}')),
}


@pytest.mark.parametrize("name", ABUSE)
def test_abuse(tmp_path, name):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(ABUSE[name])
    with pytest.raises(CheckpointError, match=str(path)) as caught:
        load(path)
    assert len(str(caught.value)) < 400


def test_header_over_the_limit(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(packed({}, length=100_000_001))
    os.truncate(path, 200_000_000)
    with pytest.raises(CheckpointError, match="at most 100000000 bytes"):
        load(path)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_flipped_bytes_load_or_give_one_error(path, data):
    save(path, TENSORS, META)
    content = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = data.draw(st.booleans(), label="in the header")
    places = st.integers(0, start - 1) if header else st.integers(start, len(content) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=4, unique=True)):
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    tensors, error = outcome(path)
    assert header or not error
    if error:
        assert str(path) in error
    else:
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        assert size == len(content) - 8 - struct.unpack("<Q", content[:8])[0]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "I64", "BOOL", "F4", "F8_E8M0"]) | json_values,
        "shape": st.lists(st.integers(0, 3) | st.integers(), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(0, 16) | st.integers(), min_size=2, max_size=2)
        | json_values,
    }
)
headers = st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), entries | json_values)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(header=headers, good_meta=st.booleans(), body=st.binary(max_size=16))
def test_any_header_loads_or_gives_one_error(tmp_path, header, good_meta, body):
    path = tmp_path / "a"
    if good_meta:
        header["__metadata__"] = {"fastgen": "{}"}
    path.write_bytes(packed(header, body))
    tensors, error = outcome(path)
    if not error:
        assert tensors.keys() == header.keys() - {"__metadata__"}
        assert sum(t.numel() * t.element_size() for t in tensors.values()) == len(body)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=64))
def test_any_bytes_give_one_error(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(CheckpointError):
        load(tmp_path / "a")


def test_not_a_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")
    with pytest.raises(CheckpointError, match="regular file"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="regular file"):
        load(tmp_path / "pipe")


def module_and_tensors():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    return module, {name: t.clone() for name, t in module.state_dict().items()}


def test_restore():
    module, tensors = module_and_tensors()
    tensors = {name: torch.full_like(t, 2) for name, t in tensors.items()}
    restore(module, tensors, "a")
    assert equal(dict(module.state_dict()), tensors)
    live = {"x": torch.zeros(2)}
    alias = live["x"]
    restore(live, {"x": torch.ones(2)}, "a")
    assert alias.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("0.bias"), "1 missing keys: '0.bias'"),
        (lambda t: t.update(extra=torch.zeros(1)), "1 unexpected keys: 'extra'"),
        (
            lambda t: t.update({"0.bias": torch.zeros(3)}),
            r"'0.bias': expected shape \(2,\), got \(3,\)",
        ),
        (lambda t: t.update({"0.bias": torch.zeros(1)}), "expected shape"),
        (lambda t: t.update({"0.bias": torch.zeros(2).double()}), "'0.bias': expected dtype"),
        (lambda t: t["1.running_var"].fill_(float("nan")), "'1.running_var': expected finite"),
        (lambda t: t["1.running_var"][:1].fill_(float("inf")), "'1.running_var': expected finite"),
    ],
)
def test_restore_changes_all_or_nothing(change, message):
    module, tensors = module_and_tensors()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    tensors = {name: t + 1 for name, t in tensors.items()}
    change(tensors)
    with pytest.raises(CheckpointError, match=message) as caught:
        restore(module, tensors, "some.safetensors")
    assert "some.safetensors" in str(caught.value)
    assert equal(dict(module.state_dict()), before)


def state(value):
    return {"step": torch.tensor(value), "w": torch.full((3,), float(value))}


def folder(path, keep=2, **meta):
    return Folder(path, {"model": "Toy", "config": {"layers": 2}, **meta}, keep)


def steps(path):
    return sorted(int(p.stem[5:]) for p in path.glob("step-*.safetensors"))


def test_folder_keeps_the_newest_and_resumes(tmp_path):
    run = tmp_path / "a" / "run"
    live = state(0)
    folder(run).resume(live)
    assert latest(run) is None
    for step in (5, 10, 15):
        folder(run, keep=2, license="CC0").save(step, {"w": torch.zeros(3)}, state(step))
    assert steps(run) == [10, 15]
    assert latest(run) == run / "step-00000015.safetensors"
    folder(run).resume(live)
    assert equal(live, state(15))
    expected = {"model": "Toy", "config": {"layers": 2}, "license": "CC0", "step": 15}
    assert load(run / "model.safetensors")[1] == load(latest(run))[1] == expected


def test_folder_skips_broken_checkpoints(tmp_path):
    for step in (5, 10):
        folder(tmp_path).save(step, {}, state(step))
    broken = tmp_path / "step-00000010.safetensors"
    os.truncate(broken, 40)
    (tmp_path / ".0123.tmp").write_bytes(b"left by a kill")
    live = state(0)
    with pytest.warns(UserWarning, match=str(broken)):
        folder(tmp_path).resume(live)
    assert equal(live, state(5))
    assert not list(tmp_path.glob(".*"))
    folder(tmp_path, keep=1).save(7, {}, state(7))
    assert steps(tmp_path) == [7, 10]
    os.truncate(tmp_path / "step-00000007.safetensors", 0)
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(CheckpointError, match="each of the 2"),
    ):
        latest(tmp_path)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"config": {"layers": 3}}, "layers expected 3, got 2"),
        ({"config": {"layers": 2, "kernel": (1, 2)}}, r"kernel expected \[1, 2\], got 'nothing'"),
        ({"config": {}}, "layers expected 'nothing', got 2"),
        ({"model": "Other"}, "model expected 'Other', got 'Toy'"),
    ],
)
def test_folder_of_another_model(tmp_path, meta, message):
    folder(tmp_path).save(5, {}, state(5))
    live = state(0)
    with pytest.raises(CheckpointError, match=message):
        folder(tmp_path, **meta).resume(live)
    assert equal(live, state(0))


def test_folder_accepts_a_config_with_tuples(tmp_path):
    folder(tmp_path, config={"kernel": (1, 2)}).save(5, {}, state(5))
    folder(tmp_path, config={"kernel": (1, 2)}).resume(state(0))


def test_folder_refuses_meta_that_is_not_json(tmp_path):
    with pytest.raises(TypeError):
        folder(tmp_path, a=torch.zeros(1))
    with pytest.raises(ValueError, match="JSON compliant"):
        folder(tmp_path, a=float("nan"))

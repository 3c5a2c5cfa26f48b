"""wavenet_sample against its floor and its rivals: `pytest bench/bench_wavenet_sample.py`.

REF: 20 layers, 64 residual, 128 gate, 256 skip channels, 256 classes, kernel 2. A step of a stream
uses each weight once: 868,352 multiply-adds, 3.47 MB in float32, 1.74 in bfloat16, 0.87 in int8.
Its floor is the time to read that once (torch.sum over as many bytes); that of 8 streams is the
larger of it and of 8 times the arithmetic at the peak that torch.mm reaches.

Rivals: a careful loop in torch on ring buffers, a product for each layer and one for all skips, in
inference_mode; the same step under torch.compile with the C++ wrapper; and a forward pass over the
receptive field for each sample. That equal uniforms give equal codes, or in bfloat16 and int8
nearly equal distributions, is checked before all timing.

On a GPU, 1, 16 and 132 x 16 streams. The rivals are the torch loop and its compiled step in a CUDA
graph, replayed for each sample.
"""

import pytest
import torch
import torch.nn.functional as F
from measure import DEVICE, compare, multiplier, reader

import fastgen
from fastgen import kernels
from fastgen.kernels._wavenet_sample_cuda import on_cluster

STEPS = 1000
CONFIGS = {
    "REF": {},
    "30x128 k3": {
        "layers": 30,
        "stacks": 3,
        "residual_channels": 128,
        "gate_channels": 256,
        "kernel_size": 3,
    },
}
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


class TorchLoop:
    """The sampling loop that a careful user would write in torch: one `step` a sample."""

    def __init__(self, model, n, compiled=False):
        w = kernels.Weights(*(v if v is None else v.detach() for v in model.weights()))
        self.dilations, self.K, self.n = model.dilations, w.conv.shape[-1], n
        # the taps side by side, so that a layer's convolution is one product
        self.conv = [c.permute(0, 2, 1).flatten(1).contiguous() for c in w.conv]
        self.skip = w.skip.transpose(0, 1).flatten(1).contiguous()
        self.w, self.rings = w, []
        for d in self.dilations:
            self.rings.append(w.embed.new_zeros((self.K - 1) * d, n, w.embed.shape[1]))
        self.step = self._step
        if compiled:
            options = {"cpp_wrapper": not w.embed.is_cuda}
            self.step = torch.compile(self._step, fullgraph=True, dynamic=False, options=options)

    def _step(self, x, slots, u):
        """x: (n, R) embedded codes    slots: (L, K - 1)    u: (n,)    returns: codes (n,)"""
        w, h = self.w, []
        for l, ring in enumerate(self.rings):
            taps = [ring.index_select(0, slots[l, k : k + 1])[0] for k in range(self.K - 1)]
            a = F.linear(torch.cat([*taps, x], 1), self.conv[l], w.conv_bias[l])
            ring.index_copy_(0, slots[l, :1], x[None])
            f, g = a.chunk(2, 1)
            h.append(torch.tanh(f) * torch.sigmoid(g))
            if l < len(self.rings) - 1:
                x = x + F.linear(h[-1], w.res[l], w.res_bias[l])
        y = torch.relu(F.linear(torch.cat(h, 1), self.skip, w.skip_bias))
        y = F.linear(torch.relu(F.linear(y, w.hidden, w.hidden_bias)), w.out, w.out_bias)
        cdf = torch.softmax(y, 1).cumsum(1)
        return (cdf <= u[:, None]).sum(1).clamp(max=cdf.shape[1] - 1)

    def slots(self, T):
        """Where each step's past taps lie: (T, L, K - 1); the oldest one's is the one to fill."""
        depth = torch.tensor([(self.K - 1) * d for d in self.dilations])[None, :, None]
        back = torch.arange(self.K - 1, 0, -1) * torch.tensor(self.dilations)[:, None]
        return ((torch.arange(T)[:, None, None] - back) % depth).to(self.w.embed.device)

    @torch.inference_mode()
    def sample(self, uniforms):
        n, T = uniforms.shape
        for ring in self.rings:
            ring.zero_()
        slots, x, codes = self.slots(T), self.w.embed.new_zeros(n, self.w.embed.shape[1]), []
        for t in range(T):
            codes.append(self.step(x, slots[t], uniforms[:, t]))
            x = self.w.embed[codes[-1]]
        return torch.stack(codes, 1)


class GraphLoop(TorchLoop):
    """The same, its compiled step with all that surrounds it in a CUDA graph."""

    @torch.inference_mode()
    def __init__(self, model, uniforms):
        n, T = uniforms.shape
        super().__init__(model, n, compiled=True)
        embed = self.w.embed
        self.x, self.t = embed.new_zeros(n, embed.shape[1]), torch.zeros_like(embed[0, :1]).long()
        self.codes = torch.zeros(T, n, dtype=torch.int64, device=embed.device)
        self.places, self.u, graph = self.slots(T), uniforms.t().contiguous(), None
        if embed.is_cuda:
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                for _ in range(3):
                    self.once()
            side.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.once()
        self.replay = graph.replay if graph else self.once

    def once(self):
        slots, u = (v.index_select(0, self.t)[0] for v in (self.places, self.u))
        codes = self.step(self.x, slots, u)
        self.x.copy_(self.w.embed[codes])
        self.codes.index_copy_(0, self.t, codes[None])
        self.t.add_(1)

    @torch.inference_mode()
    def sample(self, _):
        for v in (self.x, self.t, *self.rings):
            v.zero_()
        for _ in range(len(self.codes)):
            self.replay()
        return self.codes.t()


@pytest.fixture(scope="module")
def once():
    """once(key, make) is make(), called the first time that the key comes up."""
    made = {}

    def get(key, make):
        if key not in made:
            made[key] = make()
        return made[key]

    yield get
    torch._dynamo.reset()


def build(config):
    torch.manual_seed(0)
    model = fastgen.WaveNet(**CONFIGS[config])
    with torch.no_grad():
        model.out.weight *= 8  # away from uniform, so that equal codes mean something
    return model


def check_codes(model, uniforms, codes):
    """Codes are float64's, but where u lies within 1e-5 of a step of its CDF."""
    steps = exact(model, uniforms, codes).cumsum(-1) - uniforms[..., None]
    expected = (steps <= 0).sum(-1).clamp(max=steps.shape[-1] - 1)
    assert ((codes == expected) | (steps.abs().amin(-1) < 1e-5)).all()


def check_narrow(model, packed, uniforms, codes):
    """What bfloat16 or int8 draws from is within a hundredth of a nat of float64's."""
    options = {"prefix": codes, "logits": True, "dilations": model.dilations}
    _, _, logits = kernels.wavenet_sample(packed, uniforms, **options)
    close_to_exact(model, uniforms, codes, logits)


def close_to_exact(model, uniforms, codes, logits):
    p = exact(model, uniforms, codes)
    divergence = (p * (p.log() - torch.log_softmax(logits.double(), -1))).sum(-1)
    assert divergence.mean() < 0.01


def exact(model, uniforms, codes):
    """The distributions (n, T, A) along `codes`, in float64."""
    options = {"prefix": codes, "logits": True, "dilations": model.dilations, "dtype": "float64"}
    _, _, logits = kernels.wavenet_sample(model.weights(), uniforms, **options)
    return torch.softmax(logits, -1)


def rivals(once, config, model, n):
    """The rivals, on one thread: name -> (call, codes a stream that it draws)."""
    few, runs = 50, {}
    uniforms = kernels.uniforms(1, n, few)
    for name, compiled in (("torch loop", False), ("torch.compile", True)):
        loop = once((config, n, name), lambda c=compiled: TorchLoop(model, n, c))
        check_codes(model, uniforms, loop.sample(uniforms.float()))
        runs[name] = (lambda loop=loop: loop.sample(uniforms.float())), few
    window = torch.zeros(n, model.receptive_field, dtype=torch.int64)
    runs["naive"] = torch.inference_mode()(lambda: model(window)), 1
    return runs


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("dtype", list(BYTES))
@pytest.mark.parametrize("config", list(CONFIGS))
def test_wavenet_sample(benchmark, report, once, config, dtype, n, threads):
    torch.set_num_threads(1)
    model = once(config, lambda: build(config))
    packed = once((config, dtype), lambda: kernels.pack(model.weights(), dtype))

    def sample(n, threads):
        """A call that draws STEPS codes of n streams for each thread."""
        uniforms = kernels.uniforms(1, n * threads, STEPS)
        options = {"dilations": model.dilations, "threads": threads}
        return lambda: kernels.wavenet_sample(packed, uniforms, **options)[0]

    ours = sample(n, threads)
    uniforms = kernels.uniforms(1, n * threads, STEPS)
    if dtype == "float32":
        check_codes(model, uniforms, ours())
    else:
        check_narrow(model, packed, uniforms, ours())
    w = packed.weights
    products = sum(v.numel() for v in (w.conv, w.res, w.skip, w.hidden, w.out))
    runs = {"ours": (ours, STEPS), "read": (reader(products * BYTES[dtype], STEPS), STEPS)}
    if (n, threads) != (1, 1):
        runs["one stream"] = sample(1, 1), STEPS
    if threads > 1:
        runs["one thread"] = sample(n, 1), STEPS
    if dtype != "float32":
        floats = once((config, "float32"), lambda: kernels.pack(model.weights()))
        options = {"dilations": model.dilations, "threads": threads}
        runs["float32"] = (lambda: kernels.wavenet_sample(floats, uniforms, **options)), STEPS
    elif threads == 1:
        runs["mm"] = multiplier(), 1
        runs |= rivals(once, config, model, n)
    seconds = compare({name: call for name, (call, _) in runs.items()})
    step = {name: seconds[name] / runs[name][1] for name in runs}  # of all the call's streams
    rate = {name: n * threads / s for name, s in step.items()}
    if "one stream" in runs:
        rate["one stream"] = 1 / step["one stream"]
    if "one thread" in runs:
        rate["one thread"] = n / step["one thread"]
    row = {"config": config, "dtype": dtype, "streams": n * threads, "threads": threads}
    row["samples/s"] = f"{rate['ours']:,.0f}"
    row["of read limit"] = f"{step['read'] / step['ours']:.2f}"
    for name in ("float32", "one stream", "one thread", "torch.compile", "torch loop", "naive"):
        row[f"x {name}"] = f"{rate['ours'] / rate[name]:,.2f}" if name in runs else ""
    if "mm" in runs:
        peak = 2 * 384**3 / seconds["mm"]
        row["of mm peak"] = f"{2 * products * n / step['ours'] / peak:.2f}"
    report(**row)
    benchmark.extra_info.update(row)
    benchmark.pedantic(ours, rounds=5)


def workload(dtype, device, small):
    """A call that runs one step after another along given codes, for the tuner."""
    model = build("REF").to(device)
    packed = kernels.pack(model.weights(), dtype)
    uniforms = kernels.uniforms(1, 16, 4 if small else 400).to(device)
    # codes that are drawn would part where two sums round otherwise
    options = {"prefix": (256 * uniforms).long(), "logits": True, "dilations": model.dilations}
    return lambda: [kernels.wavenet_sample(packed, uniforms, **options)[2]]


@pytest.mark.gpu
@pytest.mark.skipif("DEVICE == 'cpu' and not config.getoption('small')", reason="needs a GPU")
@pytest.mark.parametrize("n", [1, 16, 132 * 16])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_wavenet_sample_on_a_gpu(report, once, small, dtype, n):
    n, steps, few = (min(n, 2), 8, 4) if small else (n, STEPS, 100)
    model, host = once("cuda", lambda: build("REF").to(DEVICE)), once("REF", lambda: build("REF"))
    packed = once(("cuda", dtype), lambda: kernels.pack(model.weights(), dtype))
    uniforms = kernels.uniforms(1, n, steps)
    on_device = uniforms.to(DEVICE)
    runs = {"ours": lambda: kernels.wavenet_sample(packed, on_device, dilations=model.dilations)[0]}
    codes, some = runs["ours"]().cpu()[:4, :200], uniforms[:4, :200]
    if dtype == "float32":
        check_codes(host, some, codes)
        short = on_device[:, :few].float()
        loops = {"torch loop": TorchLoop(model, n), "graph loop": GraphLoop(model, short)}
        for name, loop in loops.items():
            check_codes(host, some[:, :few], loop.sample(short).cpu()[:4])
            runs[name] = lambda loop=loop: loop.sample(short)
    else:
        given = {"prefix": codes.to(DEVICE), "logits": True, "dilations": model.dilations}
        _, _, logits = kernels.wavenet_sample(packed, some.to(DEVICE), **given)
        close_to_exact(host, some, codes, logits.cpu())
    seconds = compare(runs, rounds=5, device=DEVICE)
    rate = {name: n * (steps if name == "ours" else few) / s for name, s in seconds.items()}
    row = {"config": "REF", "dtype": dtype, "streams": n, "samples/s": f"{rate['ours']:,.0f}"}
    row["by"] = "cluster" if on_cluster(packed, n) else "Triton"
    row["real-time streams at 16 kHz"] = f"{rate['ours'] / 16_000:,.1f}"
    row |= {f"x {name}": f"{rate['ours'] / rate[name]:,.2f}" for name in rate if name != "ours"}
    report(**row)

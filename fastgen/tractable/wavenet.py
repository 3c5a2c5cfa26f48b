"""WaveNet, an autoregressive model of a waveform (van den Oord et al. 2016)."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from .. import kernels
from ..game import Player
from ..kernels._op import may_wait, without_autocast
from ..kernels.logistic_mixture import value
from ..kernels.wavenet_sample import check, check_weights
from .wavenet_stream import Stream


class Layer(nn.Module):
    """A gated dilated causal convolution with its residual and skip products."""

    def __init__(self, R, G, S, K, C, speakers, dilation, last):
        super().__init__()
        self.dilation = dilation
        self.conv = nn.Conv1d(R, G, K, dilation=dilation)
        self.res = None if last else nn.Conv1d(G // 2, R, 1)
        self.skip = nn.Conv1d(G // 2, S, 1)
        self.cond = nn.Conv1d(C, G, 1, bias=False) if C else None
        self.speaker = nn.Embedding(speakers, G) if speakers else None

    def forward(self, x, skip, cond, speaker, hop):
        """x: (B, R, T)  skip: (B, S, T)  cond: (B, C, F)  speaker: (B,)  returns: the next two"""
        frames = None if cond is None else self.cond(cond)  # (B, G, F)
        if speaker is not None:
            bias = self.speaker(speaker)[..., None]  # (B, G, 1)
            frames = bias if frames is None else frames + bias
        res = (None, None) if self.res is None else (self.res.weight[..., 0], self.res.bias)
        return kernels.wavenet_layer(
            *(x, skip, self.conv.weight, self.conv.bias, *res),
            *(self.skip.weight[..., 0], self.skip.bias, frames, hop, self.dilation),
        )


class WaveNet(nn.Module):
    """A stack of gated dilated causal convolutions over the codes of a waveform.

        p(x) = prod_t p(x[t] | x[0], ..., x[t-1], conditions)
        a = conv(y); h = tanh(a[:H]) * sigmoid(a[H:]); y <- y + res(h); s <- s + skip(h)
        p(x[t] | ...) = softmax(out(relu(hidden(relu(s[t])))))

    Dilations are 1, 2, 4 ... in each stack. The first layer sees an embedding of the previous
    code; at t = 0, and left of the sequence in every layer, stand zeros. `gate_channels` counts
    both halves, tanh first. `cond_channels` features a frame, a frame each `hop_length` samples,
    interpolated linearly, frame f at sample f * hop_length; without features, zeros stand for
    them. `speakers` adds a bias for each speaker and layer. With `mixtures`, the codes are
    `classes` equidistant values, and p is `kernels.logistic_mixture`'s.

    Raises ValueError for sizes that do not fit.
    """

    def __init__(
        self,
        layers=20,
        stacks=2,
        residual_channels=64,
        gate_channels=128,
        skip_channels=256,
        classes=256,
        kernel_size=2,
        cond_channels=0,
        speakers=0,
        mixtures=0,
        hop_length=1,
    ):
        super().__init__()
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        check_config(**self.config)
        self.classes, self.mixtures, self.hop_length = classes, mixtures, hop_length
        self.dilations = [2 ** (i % (layers // stacks)) for i in range(layers)]
        R, G, S = residual_channels, gate_channels, skip_channels
        self.embed = nn.Linear(1, R) if mixtures else nn.Embedding(classes, R)
        sizes = (R, G, S, kernel_size, cond_channels, speakers)
        self.layers = nn.ModuleList(
            Layer(*sizes, d, last=i == layers - 1) for i, d in enumerate(self.dilations)
        )
        self.hidden = nn.Conv1d(S, S, 1)
        self.out = nn.Conv1d(S, 3 * mixtures or classes, 1)

    @property
    def receptive_field(self):
        """How many past codes a prediction sees."""
        return (self.config["kernel_size"] - 1) * sum(self.dilations) + 1

    def players(self):
        """Maximum likelihood: one player, who minimises nats a sample."""

        def loss(x, *conditions):
            return -self.log_prob(x, *conditions).mean() / x.shape[1]

        return [Player("wavenet", self, loss)]

    def forward(self, x, cond=None, speaker=None):
        """What the network says of each code, given those before it.

        x: (B, T) int64    cond: (B, cond_channels, F), F >= T / hop_length    speaker: (B,) int64
        returns: logits (B, classes, T), or (B, 3 mixtures, T); [..., t] is p(x[t] | x[<t])
        Raises ValueError for shapes that do not fit and codes out of range, TypeError for dtypes.
        """
        check_input(self, x, cond, speaker)
        if x.shape[1] == 0:  # conv1d takes no empty sequence
            return self.out.weight.new_zeros(len(x), self.out.out_channels, 0)
        previous = x[:, :-1]
        if self.mixtures:
            dtype = self.embed.weight.dtype
            previous = value(previous, self.classes, dtype)[..., None]
        y = self.embed(previous)
        y = F.pad(y.transpose(1, 2), (1, 0))[..., : x.shape[1]]  # (B, R, T)
        skip = y.new_zeros(x.shape[0], self.config["skip_channels"], x.shape[1])
        for layer in self.layers:
            y, skip = layer(y, skip, cond, speaker, self.hop_length)
        return self.out(torch.relu(self.hidden(torch.relu(skip))))

    def log_prob(self, x, cond=None, speaker=None):
        """Exact log-probability of codes, in nats.

        x, cond, speaker: as in `forward`    returns: (B,)
        """
        logits = self(x, cond, speaker)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.mixtures:
            return kernels.logistic_mixture(logits, x[:, None], self.classes).sum(1)
        return -F.cross_entropy(logits, x, reduction="none").sum(1)

    def weights(self):
        """The parameters as `kernels.wavenet_sample` takes them, layers stacked."""
        conv = [layer.conv for layer in self.layers]
        res = [layer.res for layer in self.layers[:-1]]
        R, H = self.config["residual_channels"], self.config["gate_channels"] // 2
        embed = self.embed.weight
        if self.mixtures:
            embed = torch.stack([embed[:, 0], self.embed.bias])
        return kernels.Weights(
            embed=embed,
            conv=torch.stack([c.weight for c in conv]),
            conv_bias=torch.stack([c.bias for c in conv]),
            res=torch.stack([r.weight[..., 0] for r in res]) if res else embed.new_empty(0, R, H),
            res_bias=torch.stack([r.bias for r in res]) if res else embed.new_empty(0, R),
            skip=torch.stack([layer.skip.weight[..., 0] for layer in self.layers]),
            skip_bias=sum(layer.skip.bias for layer in self.layers),
            hidden=self.hidden.weight[..., 0],
            hidden_bias=self.hidden.bias,
            out=self.out.weight[..., 0],
            out_bias=self.out.bias,
            cond=torch.stack([layer.cond.weight[..., 0] for layer in self.layers])
            if self.config["cond_channels"]
            else None,
        )

    @torch.no_grad()
    def sample(
        self,
        n,
        length,
        *,
        seed=None,
        uniforms=None,
        prefix=None,
        cond=None,
        speaker=None,
        temperature=1.0,
        dtype="float32",
        method="cached",
        threads=None,
    ):
        """Draw n sequences; the same uniforms give the same codes by either method.

        `uniforms` (n, length), or (n, length, 2) for a mixture, in [0, 1), else drawn from `seed`;
        `prefix` (n, P <= length) int64 are the first codes; `cond`, `speaker`: as in `forward`.
        temperature 0 takes the likeliest code. method "cached" is `kernels.wavenet_sample`,
        "naive" a forward pass over the receptive field for each code, in float32 or float64.
        returns: (n, length) int64
        Raises ValueError for shapes that do not fit and values out of range.
        """
        if method not in ("cached", "naive"):
            raise ValueError(f"sample: method expected 'cached' or 'naive', got {method!r}")
        check_size(n, length)
        if uniforms is None:
            draws, device = 2 if self.mixtures else 1, self.out.weight.device
            uniforms = kernels.uniforms(fresh(seed), n, length, draws=draws, device=device)
        elif uniforms.shape[:2] != (n, length):
            got = tuple(uniforms.shape)
            raise ValueError(f"sample: uniforms expected ({n}, {length}, ...), got {got}")
        if method == "naive":
            return sample_naive(self, uniforms, prefix, cond, speaker, temperature, dtype)
        codes, _ = kernels.wavenet_sample(
            self.weights(),
            uniforms,
            **self.sampling(n, speaker),
            prefix=prefix,
            cond=cond,
            temperature=temperature,
            dtype=dtype,
            threads=threads,
        )
        return codes

    def sampling(self, n, speaker):
        """What `kernels.wavenet_sample` needs to know beside the weights."""
        base = None
        if self.config["speakers"]:
            check_speaker(self, speaker, n)
            base = torch.stack([y.speaker(speaker) + y.conv.bias for y in self.layers], dim=1)
        elif speaker is not None:
            raise ValueError("sample: speaker expected None of a model without speakers")
        return {
            "dilations": self.dilations,
            "base": base,
            "hop": self.hop_length,
            "classes": self.classes,
            "mixtures": self.mixtures,
        }

    def stream(self, n, **options):
        """Sample for ever, a chunk after a chunk, in constant memory: see `Stream`."""
        return Stream(self, n, **options)


def fresh(seed):
    """`seed`, or one from torch's global generator."""
    return int(torch.randint(1 << 62, ())) if seed is None else seed


@without_autocast
def sample_naive(model, uniforms, prefix, cond, speaker, temperature, dtype):
    """A forward pass over the receptive field for each code: what `sample` must agree with."""
    if dtype not in ("float32", "float64"):
        raise ValueError(f"sample: naive: dtype expected 'float32' or 'float64', got {dtype!r}")
    model = copy.deepcopy(model).to(getattr(torch, dtype))
    (n, length), hop, w = uniforms.shape[:2], model.hop_length, model.weights()
    codes = uniforms.new_zeros(n, length, dtype=torch.int64)
    prefix = codes[:, :0] if prefix is None else prefix
    frames = w.embed.new_empty(n, 0, 0) if cond is None else cond.to(w.embed)
    options = {**model.sampling(n, speaker), "base": w.conv_bias[None], "temperature": temperature}
    state = kernels.initial_state(w, model.dilations, n)
    check_weights(w)
    check(w, uniforms, state=state, prefix=prefix, cond=frames, **options)
    given = prefix.shape[1]
    codes[:, :given] = prefix
    for t in range(given, length):
        start = max(0, t - model.receptive_field) // hop * hop  # a window begins with a frame
        window = None if cond is None else frames[..., start // hop :]
        logits = model(codes[:, start : t + 1], window, speaker)[..., -1]
        bad = (~logits.isfinite()).any(1).nonzero()
        if len(bad):
            where = f"stream {int(bad[0])} at step {t}"
            raise ValueError(f"sample: the logits of {where} are not finite")
        codes[:, t] = kernels.draw(
            logits, uniforms[:, t], temperature, model.classes, model.mixtures
        )
    return codes


def check_config(
    layers,
    stacks,
    residual_channels,
    gate_channels,
    skip_channels,
    classes,
    kernel_size,
    cond_channels,
    speakers,
    mixtures,
    hop_length,
):
    """Raise ValueError for a size that the model cannot have."""
    least = {"layers": 1, "stacks": 1, "residual_channels": 1, "gate_channels": 2}
    least |= {"skip_channels": 1, "classes": 2, "hop_length": 1}
    for name, got in locals().copy().items():
        if name == "least":
            continue
        if not isinstance(got, int) or got < least.get(name, 0):
            raise ValueError(f"WaveNet: {name}: expected an int >= {least.get(name, 0)}, got {got}")
    if layers % stacks:
        raise ValueError(f"WaveNet: layers: expected a multiple of {stacks} stacks, got {layers}")
    if gate_channels % 2:
        raise ValueError(f"WaveNet: gate_channels: expected an even number, got {gate_channels}")
    if kernel_size not in (2, 3):
        raise ValueError(f"WaveNet: kernel_size: expected 2 or 3, got {kernel_size}")


def check_size(n, length):
    """Raise ValueError for sizes below zero."""
    if n < 0 or length < 0:
        raise ValueError(f"sample: expected n >= 0 and length >= 0, got {n} and {length}")


def check_speaker(model, speaker, n):
    """Raise for speakers that are not n ints below the model's number of them."""
    speakers = model.config["speakers"]
    if speaker is None or speaker.shape != (n,):
        got = None if speaker is None else tuple(speaker.shape)
        raise ValueError(f"WaveNet: speaker: expected ({n},), got {got}")
    if speaker.dtype != torch.int64:
        raise TypeError(f"WaveNet: speaker: expected int64, got {speaker.dtype}")
    if n and may_wait(speaker) and not 0 <= int(speaker.min()) <= int(speaker.max()) < speakers:
        raise ValueError(f"WaveNet: speaker: expected values in [0, {speakers})")


def check_input(model, x, cond, speaker):
    """Raise ValueError or TypeError for what `forward` cannot take."""
    if x.dim() != 2:
        raise ValueError(f"WaveNet: x: expected (B, T), got {tuple(x.shape)}")
    if x.dtype != torch.int64:
        raise TypeError(f"WaveNet: x: expected int64, got {x.dtype}")
    B, T = x.shape
    if x.numel() and may_wait(x) and not 0 <= int(x.min()) <= int(x.max()) < model.classes:
        raise ValueError(f"WaveNet: x: expected codes in [0, {model.classes})")
    C = model.config["cond_channels"]
    frames = -(-T // model.hop_length)
    if cond is not None:
        fits = C and cond.dim() == 3 and cond.shape[:2] == (B, C) and cond.shape[2] >= frames
        if not fits:
            want = f"({B}, {C}, at least {frames})"
            raise ValueError(f"WaveNet: cond: expected {want}, got {tuple(cond.shape)}")
    if model.config["speakers"]:
        check_speaker(model, speaker, B)
    elif speaker is not None:
        raise ValueError("WaveNet: speaker: expected None of a model without speakers")

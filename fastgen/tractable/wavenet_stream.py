"""Sampling a WaveNet without an end, to be paused, saved and resumed."""

import torch

from .. import kernels


class Stream:
    """An iterator over chunks of codes (n, chunk): those that `sample` would draw, for ever.

    `cond` is an iterable of features (n, C, frames), read as they are needed: a frame gives its
    hop_length codes once the next frame is known, and the stream ends when the features do.
    `state` is what `state_dict` of an equal stream returned; go on with the features not yet read.

    Raises ValueError for sizes out of range and for a state that does not fit the model.
    """

    @torch.no_grad()
    def __init__(
        self,
        model,
        n,
        *,
        seed=None,
        chunk=1024,
        cond=None,
        speaker=None,
        temperature=1.0,
        dtype="float32",
        threads=None,
        state=None,
    ):
        if n < 0 or chunk < 1:
            raise ValueError(f"stream: expected n >= 0 and chunk >= 1, got {n} and {chunk}")
        self.n, self.chunk, self.hop = n, chunk, model.hop_length
        self.width = (n, model.config["cond_channels"])
        self.draws = 2 if model.mixtures else 1
        self.seed = int(torch.randint(1 << 62, ())) if seed is None else seed
        self.packed = kernels.pack(model.weights(), dtype)
        self.options = {**model.sampling(n, speaker), "temperature": temperature}
        self.options["threads"] = threads
        self.state = kernels.initial_state(self.packed, model.dilations, n)
        self.features = None if cond is None else iter(cond)
        self.frames = None  # (n, C, F) read but not used up, from the frame of the state's step
        self.draw(0, self.seed, self.state, None)  # checks the options
        if state is not None:
            self.load_state_dict(state)

    def __iter__(self):
        return self

    def __next__(self):
        length = self.chunk if self.features is None and self.frames is None else self.read()
        if length == 0:
            raise StopIteration
        codes, state = self.draw(length, self.seed, self.state, self.frames)
        rest = None if self.frames is None else self.frames[..., length // self.hop :]
        # no interrupt comes between these two
        self.state, self.frames = state, rest
        return codes

    @torch.no_grad()
    def draw(self, length, seed, state, frames):
        device = self.packed.weights.embed.device
        uniforms = kernels.uniforms(seed, self.n, length, state.step, self.draws, device)
        options = {"state": state, "cond": frames, **self.options}
        return kernels.wavenet_sample(self.packed, uniforms, **options)

    def read(self):
        """Read features until a frame can be used up; returns the steps that all of them give."""
        while self.features is not None and (self.frames is None or self.frames.shape[-1] < 2):
            more = next(self.features, None)
            if more is None:
                self.features = None
                break
            if more.dim() != 3 or more.shape[:2] != self.width:
                n, C = self.width
                raise ValueError(f"stream: cond: expected ({n}, {C}, F), got {tuple(more.shape)}")
            self.frames = more if self.frames is None else torch.cat([self.frames, more], dim=-1)
        if self.frames is None:
            return 0
        return (self.frames.shape[-1] - (self.features is not None)) * self.hop

    def state_dict(self):
        """The stream as a dict of tensors, to be saved by `fastgen.checkpoint.save`."""
        seed = self.seed - (1 << 64) if self.seed >> 63 else self.seed  # the same bits, signed
        state = {"rings": self.state.rings, "history": self.state.history}
        state |= {"step": torch.tensor(self.state.step), "seed": torch.tensor(seed)}
        return state if self.frames is None else {**state, "frames": self.frames}

    def load_state_dict(self, state):
        """Go on from what `state_dict` returned. Raises ValueError for what does not fit."""
        expected = self.state_dict()
        expected.pop("frames", None)
        wrong = expected.keys() ^ (state.keys() - {"frames"})
        if wrong:
            raise ValueError(f"stream: state: unexpected or missing {sorted(wrong)}")
        for name, tensor in expected.items():
            want, got = (tensor.shape, tensor.dtype), (state[name].shape, state[name].dtype)
            if want != got:
                raise ValueError(f"stream: state: {name} expected {want}, got {got}")
        rings, history = state["rings"].clone(), state["history"].clone()
        start = kernels.State(rings, history, int(state["step"]))
        seed, frames = int(state["seed"]) % (1 << 64), state.get("frames")
        self.draw(0, seed, start, frames)  # checks the values
        self.state, self.seed, self.frames = start, seed, frames

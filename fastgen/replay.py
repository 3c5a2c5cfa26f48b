"""Steps of training replayed as a CUDA graph: one launch in place of hundreds."""

import contextlib
import warnings

import torch

WARM = 3  # calls before the capture: what is compiled or allocated once stays out of it
MOST = 4  # graphs, each of which keeps the memory of its activations


class Replay:
    """A function of tensors, captured as a CUDA graph for each set of shapes, and then replayed.

    `fn` returns one tensor and works on memory that stays where it is. The first calls for a set
    of shapes run as they are; if the last of them waits for the GPU or draws random numbers on the
    CPU, so do all that follow, and a warning says why. A GPU's random numbers follow torch's seed
    at each call, captured or not. What else Python decides in `fn` is decided at the capture.
    """

    def __init__(self, fn):
        self.fn, self.calls, self.graphs, self.eager = fn, {}, {}, False

    def __call__(self, *tensors):
        """fn(*tensors), in memory of its own."""
        if self.eager:
            return self.fn(*tensors)
        shapes = tuple((t.shape, t.dtype) for t in tensors)
        if shapes not in self.graphs:
            if len(self.graphs) == MOST:
                return self.fn(*tensors)
            self.calls[shapes] = self.calls.get(shapes, 0) + 1
            if self.calls[shapes] <= WARM:
                return self.watch(tensors) if self.calls[shapes] == WARM else self.fn(*tensors)
            inputs = [t.clone() for t in tensors]
            try:
                self.graphs[shapes] = inputs, *capture(self.fn, inputs)
            except RuntimeError as error:
                self.give_up(str(error).partition("\n")[0])
                return self.fn(*tensors)
        inputs, replay, output = self.graphs[shapes]
        for mine, given in zip(inputs, tensors, strict=True):
            mine.copy_(given, non_blocking=True)
        replay()
        return output.clone()

    def watch(self, tensors):
        """fn(*tensors); no call is captured if this one does what a graph cannot repeat."""
        state = torch.get_rng_state()
        with waits() as found:
            output = self.fn(*tensors)
        if not torch.equal(state, torch.get_rng_state()):
            found.append("a step draws random numbers on the CPU, which a graph would repeat")
        if found:
            self.give_up(found[0])
        return output

    def give_up(self, why):
        warnings.warn(f"train: without CUDA graphs: {why}", RuntimeWarning, stacklevel=4)
        self.eager = True
        self.graphs.clear()  # and their memory


def capture(fn, inputs):
    """fn(*inputs) as a graph that has not run yet: a function that runs it, and its output."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(torch.cuda.current_stream()):  # which a capture that fails leaves behind
        with torch.cuda.graph(graph):
            output = fn(*inputs)
    return graph.replay, output


@contextlib.contextmanager
def waits():
    """The list of what torch tells of waits for the GPU within."""
    found, mode = [], torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    for warning in caught:
        text = str(warning.message)
        if text.startswith("called a synchronizing"):
            found.append(f"{text.partition(' (')[0]} ({warning.filename}:{warning.lineno})")
        elif not text.startswith("Synchronization debug mode"):  # of the mode itself, once
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )

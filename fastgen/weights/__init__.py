"""Models with their weights: those that fastgen ships, and those of files and runs."""

from importlib import resources
from pathlib import Path

import torch

from ..checkpoint import CheckpointError, latest, restore
from ..checkpoint import load as load_file
from ..implicit.dcgan import DCGAN
from ..implicit.gan import GAN
from ..implicit.infogan import InfoGAN
from ..implicit.lstm import LSTMGAN
from ..implicit.semisupervised import SemiSupervisedGAN
from ..metrics.lenet import LeNet
from ..tractable.fvbn import FVSBN
from ..tractable.glow import Glow
from ..tractable.ica import ICA
from ..tractable.made import MADE
from ..tractable.nade import NADE
from ..tractable.nice import NICE
from ..tractable.pixelcnn import GatedPixelCNN, PixelCNN
from ..tractable.pixelcnnpp import PixelCNNpp
from ..tractable.realnvp import RealNVP
from ..tractable.wavenet import WaveNet

IMAGES = (FVSBN, MADE, NADE, GatedPixelCNN, PixelCNN, PixelCNNpp)
FLOWS = (ICA, NICE, RealNVP, Glow)
KINDS = (*IMAGES, *FLOWS, DCGAN, GAN, InfoGAN, LSTMGAN, SemiSupervisedGAN, LeNet, WaveNet)
MODELS = {kind.__name__: kind for kind in KINDS}
SUFFIX = ".safetensors"
PHRASE = "phrase/"  # and a name: the log-mels of a phrase that the model's file brings along


def shipped():
    """The names of the models that come with fastgen, sorted."""
    files = resources.files(__name__).iterdir()
    return sorted(f.name.removesuffix(SUFFIX) for f in files if f.name.endswith(SUFFIX))


def load(name_or_path, device="cpu"):
    """A model in its evaluation mode, and the meta of its file.

    meta["phrases"] holds the phrases that the file brings for the model to speak, by name: their
    log-mels (mels, F), float32.

    name_or_path: a name from `shipped`, a model's file, or a run's folder or checkpoint, whose
    averaged weights are taken. Of a name and a path that are alike the name wins.

    Raises FileNotFoundError for a model that is not there; CheckpointError, naming the file, for
    one that is broken, of an unknown kind, of sizes that do not fit, or not finite; OSError.
    """
    name = str(name_or_path)
    if name in shipped():
        with resources.as_file(resources.files(__name__) / (name + SUFFIX)) as path:
            return build(path, device)
    path = Path(name_or_path)
    if path.is_dir():
        return build(run_file(path), device)
    if not path.exists():
        known = ", ".join([*shipped(), "a model's file or a run's folder"])
        raise FileNotFoundError(f"load: {name}: there is no such model: expected {known}")
    return build(path, device)


def run_file(run):
    """The file of a run's folder with its newest averaged weights."""
    path = run / f"model{SUFFIX}"
    if not path.exists():
        path = latest(run)
    if path is None:
        raise FileNotFoundError(f"load: {run}: expected a run's folder, found no checkpoint in it")
    return path


def build(path, device):
    """`load` from a file that exists."""
    tensors, meta = load_file(path)
    named = [name for name in tensors if name.startswith(PHRASE)]
    phrases = {name.removeprefix(PHRASE): tensors.pop(name).float() for name in named}
    averaged = [name for name in tensors if name.startswith("averaged.")]
    if averaged:  # a run's whole state
        tensors = {name.removeprefix("averaged."): tensors[name] for name in averaged}
    kind, config = meta.get("model"), meta.get("config")
    if not isinstance(kind, str) or kind not in MODELS:
        raise CheckpointError(f"load: {path}: model: expected one of {[*MODELS]}, got {kind!r:.80}")
    if not isinstance(config, dict):
        raise CheckpointError(f"load: {path}: config: expected an object, got {config!r:.80}")
    layers = config.get("layers")
    if isinstance(config.get("hidden"), list):
        layers = len(config["hidden"])
    for inner in (config.get("blocks"), config.get("depth")):  # of each layer of a flow
        if isinstance(inner, int):
            layers = inner * (layers if isinstance(layers, int) else 1)
    if isinstance(layers, int) and layers > len(tensors):
        raise CheckpointError(
            f"load: {path}: config: {layers} layers expected, got {len(tensors)} tensors"
        )
    try:
        # Without memory, until the sizes are known to be those of the tensors.
        with torch.device("meta"):
            model = MODELS[kind](**config)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"load: {path}: config: {error}") from error
    restore(model, tensors, path)
    model.to_empty(device=device)
    restore(model, tensors, path)
    return model.eval(), {**meta, "phrases": phrases}

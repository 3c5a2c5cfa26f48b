"""Fast kernels for generative models, and the models on top of them."""

from importlib.util import find_spec

if find_spec("fastgen.kernels") is None:
    raise ImportError(
        f"fastgen: {__file__} is the checkout, not the installed package: "
        "leave this folder, or pip install -e ."
    )

from . import kernels, nn
from .implicit.dcgan import DCGAN
from .implicit.gan import GAN
from .implicit.infogan import InfoGAN
from .implicit.lstm import LSTMGAN
from .implicit.semisupervised import SemiSupervisedGAN
from .nn import convert, restore
from .tractable.fvbn import FVSBN
from .tractable.glow import Glow
from .tractable.ica import ICA
from .tractable.made import MADE
from .tractable.nade import NADE
from .tractable.nice import NICE
from .tractable.pixelcnn import GatedPixelCNN, PixelCNN
from .tractable.pixelcnnpp import PixelCNNpp
from .tractable.realnvp import RealNVP
from .tractable.wavenet import WaveNet

__version__ = "0.1.0"
__all__ = [
    "DCGAN",
    "FVSBN",
    "GAN",
    "ICA",
    "LSTMGAN",
    "MADE",
    "NADE",
    "NICE",
    "GatedPixelCNN",
    "Glow",
    "InfoGAN",
    "PixelCNN",
    "PixelCNNpp",
    "RealNVP",
    "SemiSupervisedGAN",
    "WaveNet",
    "convert",
    "kernels",
    "nn",
    "restore",
]

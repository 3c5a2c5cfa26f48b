"""What each family of models brings to the command `fastgen`."""

from .flows import FLOWS
from .gans import GANS
from .images import IMAGES
from .scores import CLASSIFIERS
from .semisupervised import SEMISUPERVISED
from .sound import SOUND

FAMILIES = (SOUND, IMAGES, FLOWS, SEMISUPERVISED, GANS, CLASSIFIERS)

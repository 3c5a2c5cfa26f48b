"""What each family of models brings to the command `fastgen`."""

from .flows import FLOWS
from .gans import GANS
from .images import IMAGES
from .scores import CLASSIFIERS
from .sound import SOUND

FAMILIES = (SOUND, IMAGES, FLOWS, GANS, CLASSIFIERS)

"""What each family of models brings to the command `fastgen`."""

from .images import IMAGES
from .sound import SOUND

FAMILIES = (SOUND, IMAGES)

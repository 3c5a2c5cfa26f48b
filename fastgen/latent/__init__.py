"""Ways through the space that a model decodes: of any model whose `sample` takes z."""

from .ways import arithmetic, interpolate, traverse

__all__ = ["arithmetic", "interpolate", "traverse"]

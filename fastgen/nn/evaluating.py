"""To see a model as it will be when it is trained."""

import contextlib


@contextlib.contextmanager
def evaluating(model):
    """The model in evaluation; afterwards each of its modules is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, training in modes:
            module.training = training

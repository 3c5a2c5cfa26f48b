"""Play of an opponent's next steps, to differentiate through (Metz et al. 2017)."""

import torch

TINY = 1e-16  # least under a root, whose slope at 0 is infinite


def unroll(module, loss, steps, *, lr, optimizer="adam", betas=(0.9, 0.999)):
    """A module's parameters after steps of gradient descent, functions of what `loss` depends on.

        theta_0 = theta,  theta_k+1 = theta_k - lr * Adam's direction at grad loss(theta_k)

    The module keeps its parameters. The optimizer starts from zero moments, whatever the moments of
    the module's own are; all steps have the batch that `loss` holds.

    loss: parameters by name -> (), for example by `torch.func.functional_call`
    optimizer: "adam", or "sgd", which has no momentum here    returns: by name, the parameters
    that the module trains
    Raises ValueError for steps below 0 and other optimizers.
    Metz, Poole, Pfau and Sohl-Dickstein 2017, Unrolled Generative Adversarial Networks, equation 7.
    """
    if steps < 0:
        raise ValueError(f"unroll: steps: expected >= 0, got {steps}")
    if optimizer not in ("adam", "sgd"):
        raise ValueError(f"unroll: optimizer: expected 'adam' or 'sgd', got {optimizer!r:.80}")
    theta = {name: p for name, p in module.named_parameters() if p.requires_grad}
    first = second = [p.new_zeros(()) for p in theta.values()]
    b1, b2 = betas
    for step in range(1, steps + 1):
        options = {"create_graph": True, "materialize_grads": True}
        grads = torch.autograd.grad(loss(theta), list(theta.values()), **options)
        if optimizer == "adam":
            first = [b1 * m + (1 - b1) * g for m, g in zip(first, grads, strict=True)]
            second = [b2 * v + (1 - b2) * g * g for v, g in zip(second, grads, strict=True)]
            grads = [
                (m / (1 - b1**step)) / ((v / (1 - b2**step)).clamp(min=TINY).sqrt() + 1e-8)
                for m, v in zip(first, second, strict=True)
            ]
        theta = {name: p - lr * g for (name, p), g in zip(theta.items(), grads, strict=True)}
    return theta

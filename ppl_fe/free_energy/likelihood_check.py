"""Is a likelihood of one's own one: an observed site, no latent one, one number a datum?"""

from __future__ import annotations

from torch import Tensor

from ppl_fe.inference.program.trace import run_program
from ppl_fe.models.likelihoods import Likelihood, observe

EXAMPLE = 'pyro.sample("y", dist.Normal(outputs[:, 0], 0.3), obs=targets)'


def check_likelihood(likelihood: Likelihood, outputs: Tensor, targets: Tensor) -> None:
    """Refuse a likelihood that makes no observed site, or a latent one, or no number a datum.

    Without an observed site every loss would be zero, and with one number for all the data each
    datum would count as often as there are data.

    Args:
        likelihood: (outputs, targets) -> observed site.
        outputs: (N, ...) of the network.
        targets: (N, ...).

    Raises:
        ValueError: what is in the way.

    Example:
        >>> import torch
        >>> from ppl_fe.models import normal
        >>> check_likelihood(normal, torch.zeros(2, 1), torch.zeros(2))
        >>> check_likelihood(torch.nn.MSELoss(), torch.zeros(2), torch.zeros(2))
        Traceback (most recent call last):
        ValueError: likelihood makes no observed site; it has to be a function such as \
def likelihood(outputs, targets): pyro.sample("y", dist.Normal(outputs[:, 0], 0.3), obs=targets)
    """
    try:
        run = run_program(lambda: observe(likelihood, outputs, targets), {}, {})
    except KeyError as error:
        raise ValueError(
            f"likelihood has a latent site {error}, and the chains sample the network's weights "
            "alone: give it a value"
        ) from error
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        raise ValueError(
            f"the likelihood fails on outputs of {outputs.dtype}, shape {tuple(outputs.shape)}, "
            f"and targets of {targets.dtype}, shape {tuple(targets.shape)}: {error}"
        ) from error
    if not run.pointwise:
        raise ValueError(
            "likelihood makes no observed site; it has to be a function such as "
            f"def likelihood(outputs, targets): {EXAMPLE}"
        )
    for name, site in run.pointwise.items():
        if site.log_prob.dim() == 0:
            raise ValueError(
                f"likelihood's site {name!r} has one log-density for all rows together, and "
                "one a row is wanted: it is called inside a plate over the data; leave out "
                ".to_event(...) for their axis"
            )
        if site.log_prob.shape != targets.shape[:1]:
            raise ValueError(
                f"likelihood's site {name!r} has log-densities of shape "
                f"{tuple(site.log_prob.shape)} for {len(targets)} rows, of outputs "
                f"{tuple(outputs.shape)} and targets {tuple(targets.shape)}, and one a row is "
                "wanted: take a column as targets[:, 0] or outputs[:, 0], give classes by their "
                "number and not one-hot, by targets.argmax(1), or make an axis part of an event by "
                ".to_event(1)"
            )

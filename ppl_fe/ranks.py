"""Several processes that run one chain together, as `torchrun` starts them.

Where `torch.distributed` is initialised, and nowhere else, its ranks share out every minibatch. All
of them draw the same index sets from equal seeds, each evaluates its own rows, and one sum a step
gives every one of them the gradient of all rows. Noise and updates are made by each from equal
seeds and equal gradients, so that nothing else is sent in a step. Rank 0 alone writes files and
shows progress; what it alone can know (a file, the clock) it tells the others.

Every rank has to make the same calls in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, distributed
from torch.utils import _pytree as pytree

T = TypeVar("T")


class Ranks(NamedTuple):
    """How many processes run a chain, and which of them this one is, from 0."""

    total: int
    own: int


def ranks() -> Ranks:
    """Tell how many processes there are, and which this one is.

    Example:
        >>> ranks()                                               # where nothing is initialised
        Ranks(total=1, own=0)
    """
    if distributed.is_available() and distributed.is_initialized():
        return Ranks(distributed.get_world_size(), distributed.get_rank())
    return Ranks(1, 0)


def are_several() -> bool:
    """Whether a chain is run by more processes than this one."""
    return ranks().total > 1


def is_first() -> bool:
    """Whether this is the process that writes files and shows progress."""
    return ranks().own == 0


def own_part(batch: T) -> T:
    """Give the rows of a minibatch that this rank evaluates: none where there are more ranks.

    Args:
        batch: tensors (B, ...) in tuples, lists and mappings, the rows of all ranks together.

    Example:
        >>> own_part(("inputs", "targets"))  # one process has them all, as they are
        ('inputs', 'targets')
    """
    if not are_several():
        return batch
    part: T = pytree.tree_map(lambda tensor: tensor[_own_rows(len(tensor))], batch)
    return part


def own_share(length: int) -> float:
    """Give the share of a minibatch's rows, by which this rank's loss and gradient weigh.

    Args:
        length: B, the rows of all ranks together.

    Example:
        >>> own_share(10)
        1.0
    """
    rows = _own_rows(length)
    return float((rows.stop - rows.start) / length)


def _own_rows(length: int) -> slice:
    count, own = ranks()
    return slice(length * own // count, length * (own + 1) // count)


def share_of(batch_size: int, num_data: float) -> int:
    """Give the rows of a minibatch that each rank takes, where all have to take equally many.

    Args:
        batch_size: B, the rows of all ranks together.
        num_data: n, the rows that there are; infinite where B are drawn elsewhere.

    Raises:
        ValueError: B is no multiple of the number of ranks, or is all the data.

    Example:
        >>> share_of(32, 1000)
        32
    """
    count = ranks().total
    if count > 1 and (batch_size % count or batch_size >= num_data):
        raise ValueError(
            f"batch_size={batch_size} cannot be shared out evenly among {count} ranks: give a "
            f"multiple of {count} below the number of examples"
        )
    return batch_size // count


def refuse_exact_gradients() -> None:
    """Refuse several ranks where every step takes all the data.

    Raises:
        ValueError: there are several.
    """
    if are_several():
        raise ValueError(
            f"{ranks().total} ranks share out minibatches, and here every step takes all the data: "
            "give a kernel such as fe.BAOAB and minibatches (a plate with subsample_size, or "
            "batch_size), or leave torch.distributed uninitialised"
        )


def summed(values: Tensor) -> Tensor:
    """Sum a tensor over all ranks, which get the same bits; a graph can be traced through it.

    Example:
        >>> import torch
        >>> summed(torch.ones(2))
        tensor([1., 1.])
    """
    if not are_several():
        return values
    import torch.distributed._functional_collectives  # the shapes that a tracer asks for

    world = distributed.group.WORLD
    assert world is not None
    begun = torch.ops._c10d_functional.all_reduce(values.contiguous(), "sum", world.group_name)
    found: Tensor = torch.ops._c10d_functional.wait_tensor(begun)
    return found


def take_from_first(*tensors: Tensor) -> None:
    """Overwrite tensors by those of rank 0: what each rank has computed by itself may differ."""
    if not are_several():
        return
    for tensor in tensors:
        sent = tensor.contiguous()
        distributed.broadcast(sent, 0)
        tensor.copy_(sent)


def told_by_first(call: Callable[[], T]) -> T:
    """Make a call on rank 0 alone, and give its result or its error on all.

    Example:
        >>> told_by_first(lambda: 3)
        3
    """
    if not are_several():
        return call()
    found: list[Any] = [None, None]
    if is_first():
        try:
            found[0] = call()
        except Exception as error:
            found[1] = error
    distributed.broadcast_object_list(found, 0)
    if found[1] is not None:
        raise found[1]
    result: T = found[0]
    return result


def each_said(text: str) -> list[str]:
    """Collect a text of every rank, in their order.

    Example:
        >>> each_said("here")
        ['here']
    """
    if not are_several():
        return [text]
    found: list[Any] = [None] * ranks().total
    distributed.all_gather_object(found, text)
    return found


SAME_CALL = "ranks that run one chain must make the same call"
SAME_ROUNDING = "ranks have rounded differently: give them equal processors and versions"


def refuse_differences(facts: Mapping[str, Any], advice: str = SAME_CALL) -> None:
    """Refuse ranks that do not run the same: another seed, other data, another network.

    Args:
        facts: what must be equal on all ranks.
        advice: the end of the message, by default that they must make the same call.

    Raises:
        ValueError: a rank has others than rank 0; the message says which.

    Example:
        >>> refuse_differences({"seed": 0})
    """
    if not are_several():
        return
    each: list[Any] = [None] * ranks().total
    distributed.all_gather_object(each, {name: _plain(value) for name, value in facts.items()})
    for rank, own in enumerate(each):
        for name in dict.fromkeys([*each[0], *own]):
            here, first = own.get(name), each[0].get(name)
            if here != first:
                raise ValueError(f"rank {rank} has {name}={here}, and rank 0 {first}: {advice}")


def _plain(value: Any) -> Any:
    """Write what is compared as text, in which NaN equals NaN."""
    return (
        {name: repr(own) for name, own in value.items()} if isinstance(value, dict) else repr(value)
    )

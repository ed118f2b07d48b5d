"""Names of the axes of sites: a plate's entries bear its name, in whatever site they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ppl_fe.arguments import did_you_mean

# Dimensions that draws have besides those of sites.
RESERVED = {"chain", "draw", "sample", "block", "moment", "group"}

Dimensions = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Labels:
    """Names of the axes of sites, and of the entries along them.

    Args:
        dims: site -> a name for each axis.
        coords: dimension -> a label for each entry. Default none.

    Example:
        >>> labels = Labels({"effect": ("school",)})
        >>> labels.of("effect", 1), labels.of("w", 2)
        (('school',), ('w_dim_0', 'w_dim_1'))
    """

    dims: Dimensions
    coords: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def of(self, name: str, ndim: int) -> tuple[str, ...]:
        """Name the axes of a site's values, as ArviZ does where there is no name for them."""
        own = self.dims.get(name, ())
        return own if len(own) == ndim else tuple(f"{name}_dim_{k}" for k in range(ndim))

    def along(self, dims: Sequence[str], taken: Sequence[str] = ()) -> dict[str, Any]:
        """Give the labels along these dimensions, but those that are taken."""
        return {dim: self.coords[dim] for dim in dims if dim in self.coords and dim not in taken}

    def without(self, names: Sequence[str]) -> Labels:
        """Leave out sites that are kept in another shape than their own."""
        return Labels({k: v for k, v in self.dims.items() if k not in names}, self.coords)


def named_axes(nodes: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Name each site's axes by the plates that they belong to.

    A plate without a size of its own names no axis, nor does one whose name the draws need.

    Args:
        nodes: site -> its node of a trace, with a value.
    """
    found = {}
    for name, node in nodes.items():
        plates = {axis: frame.name for axis, frame in _axes_of(node).items()}
        usable = {k: plate for k, plate in plates.items() if plate not in RESERVED}
        found[name] = tuple(
            usable.get(k, f"{name}_dim_{k}").replace("/", ".") for k in range(len(_shape(node)))
        )
    return found


def event_dimensions(node: Any) -> int:
    """Count the axes of a value that no plate can have; a computed value declares none."""
    computed = node["infer"].get("_deterministic", False)
    return 0 if computed else int(node["fn"].event_dim)


def _axes_of(node: Any) -> dict[int, Any]:
    """Find axis -> the frame of the plate along it."""
    shape = _shape(node)
    lead = len(shape) - event_dimensions(node)
    return {
        lead + frame.dim: frame
        for frame in node["cond_indep_stack"]
        if frame.vectorized and lead + frame.dim >= 0 and shape[lead + frame.dim] == frame.size
    }


def _shape(node: Any) -> tuple[int, ...]:
    """Give the shape of a value, which may be a number."""
    return tuple(getattr(node["value"], "shape", ()))


def checked_labels(
    found: Dimensions,
    sizes: Mapping[str, int],
    dims: Mapping[str, Sequence[str] | str] | None,
    coords: Mapping[str, Sequence[Any]] | None,
) -> Labels:
    """Take names and labels that were given in place of those that plates have.

    Args:
        found: site -> the names of its axes.
        sizes: of those, and of axes that have others.
        dims: site -> other names.
        coords: dimension -> labels.

    Raises:
        TypeError: no mappings.
        ValueError: a site or dimension that is not there, or another number of axes or labels.

    Example:
        >>> checked_labels({"w": ("w_dim_0",)}, {"w_dim_0": 2}, {"w": ["x"]}, {"x": ["a", "b"]})
        Labels(dims={'w': ('x',)}, coords={'x': ['a', 'b']})
    """
    named, long = dict(found), dict(sizes)
    for what, given in (("dims", dims), ("coords", coords)):
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"{what} must be a mapping, got {type(given).__name__}")
    for name, own in (dims or {}).items():
        if name not in named:
            near = did_you_mean(name, named) or f"there are {', '.join(named)}"
            raise ValueError(f"dims names {name!r}, which is no site; {near}")
        own = (own,) if isinstance(own, str) else tuple(own)
        if len(own) != len(named[name]) or len(set(own)) < len(own) or RESERVED & {*own}:
            raise ValueError(
                f"dims[{name!r}] must name its {len(named[name])} axes, each another way and none "
                f"{', '.join(sorted(RESERVED))}; got {list(own)}"
            )
        for dim, before in zip(own, named[name], strict=True):
            if long.setdefault(dim, long[before]) != long[before]:
                raise ValueError(
                    f"dims[{name!r}] calls an axis of {long[before]} entries {dim!r}, and another "
                    f"one of {long[dim]} has that name"
                )
        named[name] = own
    used = {dim for own in named.values() for dim in own}
    for dim, labels in (coords or {}).items():
        if dim not in used:
            near = did_you_mean(dim, used) or f"there are {', '.join(sorted(used))}"
            raise ValueError(f"coords names {dim!r}, which is no dimension; {near}")
        if len(labels) != long[dim]:
            raise ValueError(
                f"coords[{dim!r}] has {len(labels)} labels, the dimension has {long[dim]} entries"
            )
    return Labels(named, {dim: list(labels) for dim, labels in (coords or {}).items()})

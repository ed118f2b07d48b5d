"""Run a function of tensors in one of three ways: eager, as a traced graph, or compiled.

`torch.compile` straight on Pyro code breaks the graph at every handler. Tracing the batched step
to ATen operations first (`make_fx`) leaves one graph of plain tensor arithmetic, which also runs
faster uncompiled; Inductor then compiles that graph directly, without the guards of `torch.compile`
and the layers for autograd, both of which cost every call. Inductor keeps what it compiled on disk,
so that another run of the same shapes starts warm.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ppl_fe.inference.program.factorisations import NaNFactors
from ppl_fe.inference.step.graph_passes import (
    inline_literals,
    replace_masks,
    replace_scatters,
    transpose_narrow_products,
    with_constants,
)

TensorFunction = Callable[..., Sequence[Tensor]]
CompileMode = Literal["auto", "compiled", "traced", "eager"]

# A cold compilation of a small step costs what so many seconds of the traced graph do, as they are
# predicted (benchmarks/worth_compiling.py: 9 to 13 for ten posteriors), and makes the step five to
# thirty times faster: it pays when the traced graph would run longer than this.
WORTH_COMPILING_SECONDS = 10.0

# The inputs have the shapes and strides of the example; checking them on every call costs 6 µs.
# Tests do check them, since a kernel reads whatever lies where a tensor of other strides does not.
OPTIONS: dict[str, Any] = {"size_asserts": False}
# a·b + c as one instruction, which Inductor forbids the C++ compiler by default. It pays where
# arithmetic takes the time; samplers of a model mostly wait for products of matrices.
FUSED: dict[str, Any] = {"cpp.enable_floating_point_contract_flag": "fast"}
# Inductor compiles and loads a test for each set of instructions that the processor says it has:
# 12 s on an empty cache, and 2 s in every process after that.
TRUSTED: dict[str, Any] = {"cpp.vec_isa_ok": True}

COMPILE_MODES = ("auto", "compiled", "traced", "eager")

# From the tracer's messages about a program that takes numbers out of tensors.
LEAVES_TORCH = ("get value out of a tracing tensor", "Tensor that doesn't have storage")


class ReadConstants(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Let `.item()`, `int()` and `if` read tensors shared by all chains.

    The value is baked into the graph. That is right for the data, the same at every step, as in
    `num_groups = int(group.max()) + 1`; under `vmap` what differs between chains cannot be read.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            with disable_proxy_modes_tracing():
                return func(*args)
        return func(*args, **(kwargs or {}))


def trace(
    function: TensorFunction, example: Sequence[Tensor], *, read_constants: bool = False
) -> GraphModule:
    """Trace a function to its graph of ATen operations, for inputs of these shapes.

    Args:
        function: of tensors.
        example: inputs.
        read_constants: values of inputs that `vmap` does not batch may be read, since they never
            change. Default False.

    Raises:
        ValueError: the function takes numbers out of tensors that do change.
    """

    def reading(*leaves: Tensor) -> Sequence[Tensor]:
        own = ReadConstants() if read_constants else nullcontext()  # type: ignore[no-untyped-call]
        with own, NaNFactors():
            return function(*leaves)

    try:
        with torch.no_grad():
            graph = make_fx(reading)(*example)
    except RuntimeError as error:
        refuse_leaving_torch(error)
        raise
    graph.graph.eliminate_dead_code()  # of the forward pass, what only autograd had asked for
    inline_literals(graph)
    replace_masks(graph)
    transpose_narrow_products(graph)
    replace_scatters(graph)
    graph.eval()
    return graph


def refuse_leaving_torch(error: RuntimeError) -> None:
    """Explain torch's error where a program goes through NumPy or Python numbers.

    Raises:
        ValueError: it does; otherwise nothing is raised.
    """
    if any(sign in str(error) for sign in LEAVES_TORCH):
        raise ValueError(
            "the model takes values out of tensors (.numpy(), .tolist(), .item(), int(...), `if`), "
            "so that its step makes no graph; compute what depends on data alone before the model "
            "is called and pass it as an argument, and the rest by torch's own functions"
        ) from error


def compile_graph(
    graph: GraphModule, example: Sequence[Tensor], *, fused: bool = False
) -> TensorFunction:
    """Compile a traced graph; return the graph itself without a C++ compiler or if Inductor fails.

    A failure is a warning: the draws are the same, only slower.

    Args:
        graph: from `trace`.
        example: inputs.
        fused: as in `build`. Default False.
    """
    if example[0].device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        _notice("no C++ compiler was found (g++, clang++ or c++)")
        return graph
    options, failure = OPTIONS | FUSED if fused else OPTIONS, ""
    for trust in (TRUSTED, {}):  # the compiler may not know what the processor can do
        try:
            return _tried(graph, example, options | trust)
        except Exception as error:  # it may fail in any way; the graph is an equal twin
            failure = f"{type(error).__name__}: {error}".splitlines()[0]
    _notice(failure)
    return graph


def _tried(
    graph: GraphModule, example: Sequence[Tensor], options: dict[str, Any]
) -> TensorFunction:
    """Compile a graph, and call it once."""
    with torch.no_grad(), warnings.catch_warnings():
        # Deprecations within torch would count as a failure where warnings are errors.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        compiled = _by_inductor(graph, example, options)
        compiled(*example)
    return compiled


def _by_inductor(
    graph: GraphModule, example: Sequence[Tensor], options: dict[str, Any]
) -> TensorFunction:
    """Compile by Inductor, without the layers for autograd, which cost 4 µs a call."""
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.cpu_vec_isa import valid_vec_isa_list
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.fx_passes.joint_graph import joint_graph_passes
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    if not options.keys() & TRUSTED.keys():
        valid_vec_isa_list.cache_clear()
    shapes = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    fake = [shapes.from_tensor(leaf, static_shapes=True) for leaf in example]
    with shapes:
        functional = make_fx(functionalize(graph), decomposition_table=select_decomp_table())(*fake)
    # Within a tracing context, without which Inductor keeps no graph on disk.
    with config.patch(options), tracing(TracingContext(shapes)):
        joint_graph_passes(functional)
        kernels = compile_fx_inner(functional, fake, is_inference=True)

    def compiled(*leaves: Tensor) -> Sequence[Tensor]:
        found: Sequence[Tensor] = kernels(list(leaves))
        return found

    return compiled


def _notice(reason: str) -> None:
    warnings.warn(
        f"running uncompiled: {reason}. Draws are unaffected; "
        "pass compile='traced' to silence this.",
        RuntimeWarning,
        stacklevel=4,
    )


def predicted_seconds(graph: GraphModule, example: Sequence[Tensor], num_calls: int) -> float:
    """Predict the seconds of calls of the traced graph, at 4 µs an operation and 20 GFLOP/s.

    Counted, not timed, so that the same program always runs the same way: a compiled step rounds
    differently from a traced one, and a choice by the clock would make draws irreproducible.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        graph(*example)
    return num_calls * (4e-6 * len(graph.graph.nodes) + counter.get_total_flops() / 2e10)


class Built(NamedTuple):
    """A function that is ready to run.

    Attributes:
        run: the function.
        mode: what "auto" came to.
        compiled: compiles it, given inputs, where "auto" left it traced; None otherwise.
        seconds: that a call of the traced graph is predicted to take.
    """

    run: TensorFunction
    mode: CompileMode
    compiled: Callable[[Sequence[Tensor]], Built] | None = None
    seconds: float = 0.0

    def for_calls(self, num_calls: float, example: Callable[[], Sequence[Tensor]]) -> Built:
        """Compile what "auto" has left traced, if so many calls that are still to come pay for it.

        Args:
            num_calls: expected.
            example: makes inputs, as `build` takes them.
        """
        if self.compiled is None or num_calls * self.seconds <= WORTH_COMPILING_SECONDS:
            return self
        return self.compiled(example())


def apart(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Copy inputs for `build`: the tracer takes two that are one tensor for one input.

    A tensor whose strides a copy would lose (rows of every second column, one number repeated)
    stays itself: compiled code reads its inputs by the strides of the example.
    """
    copies = [leaf.clone() for leaf in inputs]
    return [
        copy if copy.stride() == leaf.stride() else leaf
        for copy, leaf in zip(copies, inputs, strict=True)
    ]


def build(
    function: TensorFunction,
    example: Sequence[Tensor],
    mode: CompileMode,
    num_calls: int,
    *,
    read_constants: bool = False,
    fused: bool = False,
) -> Built:
    """Prepare a function to be run in a mode.

    Args:
        function: of tensors.
        example: inputs; those of every call have their shapes, and where it is compiled their
            strides.
        mode: "eager", "traced", "compiled", or "auto": compiled where that pays.
        num_calls: expected, for "auto".
        read_constants: as in `trace`. Default False.
        fused: round a·b + c once and not twice, where compiled. Default False.

    Raises:
        ValueError: another mode, or a function that makes no graph.
    """
    if mode not in COMPILE_MODES:
        raise ValueError(f"compile must be one of {COMPILE_MODES}, got {mode!r}")
    if mode == "eager":
        return Built(function, "eager")
    graph = trace(function, example, read_constants=read_constants)
    if mode == "compiled":
        return _compiled(graph, example, fused=fused)
    plain = with_constants(graph)
    if mode == "traced":
        return Built(plain, "traced")
    later = partial(_compiled, graph, fused=fused)
    built = Built(plain, "traced", later, predicted_seconds(plain, example, 1))
    return built.for_calls(num_calls, lambda: example)


def _compiled(graph: GraphModule, example: Sequence[Tensor], *, fused: bool = False) -> Built:
    run = compile_graph(graph, example, fused=fused)
    return Built(run, "traced" if run is graph else "compiled")

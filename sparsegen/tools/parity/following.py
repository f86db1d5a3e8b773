"""A PyTorch module comes in and runs, and the values at the ends of chains of its operations come out.

A layer of the model fuses what PyTorch does in several operations: the product, a bias, a time's shift, a residual, an
activation. Its canvas stands for the end of that chain. A chain begins at the output of the module that holds the
layer's weight, and is followed by the tensors themselves: through operations that pass values on, through as many
additions as the layer fuses, and through its activation. PyTorch is imported when `followed` is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparsegen.backends.interface import Host

_SAME = {
    *("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "squeeze", "unsqueeze", "expand"),
    *("clone", "contiguous", "alias", "detach", "_to_copy", "dropout", "native_dropout"),
}
"""Operations that pass values on as they are."""
_ACTIVATIONS = {
    "silu": {"silu", "silu_"},
    "relu": {"relu", "relu_", "clamp_min"},
    "leaky_relu": {"leaky_relu", "leaky_relu_"},
    "tanh": {"tanh", "tanh_"},
    "gelu": {"gelu"},
}
"""Activation -> the operations that are it."""
_PRODUCTS = ("silu", "quick_gelu")
"""Activations that may be written as a product with a sigmoid."""


@dataclass(frozen=True)
class Start:
    """How a chain goes on behind the output of a module."""

    adds: int = 0
    """Additions that belong to it."""
    activation: str = "identity"
    """The activation at its end."""


@dataclass
class Followed:
    """What was found in one run, by name of the module."""

    outputs: dict[str, Host] = field(default_factory=dict)
    """The value at the end of each chain."""
    residuals: dict[str, Host] = field(default_factory=dict)
    """The other operand of its last addition."""
    inputs: dict[str, Host] = field(default_factory=dict)
    """The first input."""
    remarks: dict[str, str] = field(default_factory=dict)
    """What PyTorch does otherwise: less behind the module than its chain has, or more than one call."""


@dataclass(eq=False)
class _Chain:
    module: str
    adds: int
    activation: str
    now: Any = None
    """The tensor at its end so far."""
    residual: Any = None
    done: bool = False


class _Chains:
    """The chains of one run, and the tensors at which they have arrived."""

    def __init__(self, starts: Mapping[str, Start], found: Followed) -> None:
        self.starts, self.found = starts, found
        self.chains: dict[str, _Chain] = {}
        self.at: dict[int, list[_Chain]] = {}
        """id of a tensor -> chains that have arrived there; a chain holds its tensor, so the id stays its own."""

    def begin(self, name: str, output: Any) -> None:
        """A module has been called."""
        if name in self.chains:
            self.found.remarks[name] = f"PyTorch calls {name} more than once; the first call is compared"
            return
        start = self.starts[name]
        self.chains[name] = _Chain(name, start.adds, start.activation)
        self._advance(self.chains[name], output)

    def operation(self, name: str, arguments: Iterable[Any], tensors: list[Any], out: Any) -> None:
        """An operation has been done: chains that have arrived at one of its operands go on, or end."""
        numbers = [each for each in arguments if isinstance(each, int | float)]
        for each in tensors:
            for chain in self.at.pop(id(each), []):
                if chain.done or chain.now is not each:
                    continue
                if name in _SAME or (name in ("div", "mul") and numbers == [1] and len(tensors) == 1):
                    self._advance(chain, out)
                elif name in ("add", "add_") and chain.adds and len(tensors) == 2:
                    chain.adds -= 1
                    first = tensors[0] is each
                    # in place, the first operand is the sum by now
                    chain.residual = tensors[1] if first else tensors[0] if name == "add" else None
                    self._advance(chain, out)
                elif not chain.adds and self._activates(name, chain.activation, len(tensors)):
                    chain.activation = "identity"
                    self._advance(chain, out)
                elif chain.adds:  # something else reads it first: a later addition is another layer's
                    self.end(chain)
                else:
                    self.at.setdefault(id(each), []).append(chain)

    @staticmethod
    def _activates(name: str, activation: str, operands: int) -> bool:
        """Whether an operation on so many tensors is the end of an activation."""
        product = name in ("mul", "mul_") and operands == 2 and activation in _PRODUCTS
        return product or name in _ACTIVATIONS.get(activation, ())

    def _advance(self, chain: _Chain, value: Any) -> None:
        chain.now = value
        if chain.adds == 0 and chain.activation == "identity":
            self._finish(chain)
        else:
            self.at.setdefault(id(value), []).append(chain)

    def _finish(self, chain: _Chain) -> None:
        self.found.outputs[chain.module] = host(chain.now)
        if chain.residual is not None:
            self.found.residuals[chain.module] = host(chain.residual)
        chain.now, chain.residual, chain.done = None, None, True

    def end(self, chain: _Chain) -> None:
        """End a chain that does less than the layer."""
        lacks = ["an addition"] * bool(chain.adds)
        lacks += [chain.activation] * (chain.activation != "identity")
        self.found.remarks[chain.module] = (
            f"the layer ends with {' and '.join(lacks)}, and PyTorch has none behind {chain.module}"
        )
        self._finish(chain)


def followed(
    module: Any, starts: Mapping[str, Start], inputs_of: Iterable[str], run: Callable[[], Any]
) -> tuple[Followed, Any]:
    """Call `run`, which calls the module, in evaluation mode and without gradients, and follow its chains.

    Parameters
    ----------
    module
        The module; its mode and its hooks are afterwards as they were.
    starts
        Name of a module in it -> the chain behind its output.
    inputs_of
        Names of modules whose first input is kept.

    Returns
    -------
    What was found, and the result of `run`.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    found = Followed()
    chains = _Chains(starts, found)
    modules = dict(module.named_modules())
    looking = False  # while values are copied, their operations are nobody's

    @contextmanager
    def look() -> Iterator[None]:
        nonlocal looking
        looking = True
        try:
            yield
        finally:
            looking = False

    mode: Any = TorchDispatchMode

    class Following(mode):  # type: ignore[misc]  # PyTorch is imported late
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if not looking:
                with look():
                    tensors = [each for each in args if isinstance(each, torch.Tensor)]
                    chains.operation(func.overloadpacket.__name__, args, tensors, out)
            return out

    def began(name: str) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                with look():
                    chains.begin(name, output)

        return hook

    def reads(name: str) -> Callable[..., None]:
        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            given = [each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor)]
            if given and name not in found.inputs:
                with look():
                    found.inputs[name] = host(given[0])

        return hook

    handles = [modules[name].register_forward_hook(began(name)) for name in starts if name in modules]
    handles += [
        modules[name].register_forward_pre_hook(reads(name), with_kwargs=True)
        for name in dict.fromkeys(inputs_of)
        if name in modules
    ]
    modes = {each: each.training for each in module.modules()}
    try:
        module.eval()
        with torch.no_grad(), Following():
            result = run()
    finally:
        for handle in handles:
            handle.remove()
        for each, training in modes.items():
            each.training = training
    for chain in chains.chains.values():
        if not chain.done:
            chains.end(chain)
    return found, result


def host(value: Any) -> Host:
    """A copy of a tensor in main memory; floats as float32."""
    return np.array(view(value))


def view(value: Any) -> Host:
    """A tensor as an array, a copy only where it must be; floats as float32."""
    held = value.detach().cpu()
    return np.asarray((held.float() if held.is_floating_point() else held).numpy())

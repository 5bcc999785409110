"""Count the matrix products and convolutions of a computation, and time them alone at the same shapes and precision.

The rest of a step's time is overhead: element-wise work, memory, Python.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry


@dataclass
class Product:
    """A product or convolution that occurred, with what it takes to do it again."""

    operation: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    flops: int
    count: int = 0


@dataclass(frozen=True)
class _Like:
    """A tensor's shape, strides and type in place of the tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def make(self) -> Tensor:
        tensor = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
        return tensor.normal_() if tensor.is_floating_point() else tensor.zero_()


@dataclass
class CountProducts(TorchDispatchMode):
    """While open, notes every matrix product and convolution, forward and backward.

    Example:
        >>> with CountProducts() as counted:
        ...     _ = torch.ones(2, 3) @ torch.ones(3, 5)
        >>> counted.macs
        30
    """

    products: dict[str, Product] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation._overloadpacket not in flop_registry:
            # In inference mode compound operations, such as linear, arrive whole.
            with self:
                result = operation.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        result = operation(*args, **(kwargs or {}))
        count = flop_registry.get(operation._overloadpacket)
        if count is not None:
            arguments, keywords = tree_map(_outline, args), tree_map(_outline, kwargs or {})
            key = f"{operation} {arguments} {keywords}"
            if key not in self.products:
                flops = count(*args, **(kwargs or {}), out_val=result)
                self.products[key] = Product(operation, arguments, keywords, int(flops))
            self.products[key].count += 1
        return result

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all of them."""
        return sum(product.flops * product.count for product in self.products.values()) // 2

    def bare_seconds(self, repeats: int, synchronize: Callable[[], None]) -> float:
        """Time of all of them, each done alone on random numbers of the same shapes; the sum of their medians."""
        return sum(_time(product, repeats, synchronize) * product.count for product in self.products.values())


def _outline(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Like(tuple(value.shape), tuple(value.stride()), value.dtype, value.device)
    return value


def _time(product: Product, repeats: int, synchronize: Callable[[], None]) -> float:
    arguments = tree_map(lambda value: value.make() if isinstance(value, _Like) else value, product.arguments)
    keywords = tree_map(lambda value: value.make() if isinstance(value, _Like) else value, product.keywords)
    with torch.no_grad():
        product.operation(*arguments, **keywords)
        seconds = []
        for _ in range(repeats):
            synchronize()
            start = time.perf_counter()
            product.operation(*arguments, **keywords)
            synchronize()
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def matmul_peak(dtype: torch.dtype, device: torch.device, synchronize: Callable[[], None]) -> float:
    """Measure the FLOP/s of a large square product, the best of several."""
    side = 8192 if device.type == "cuda" else 2048
    left = torch.randn(side, side, device=device).to(dtype)
    best = float("inf")
    for _ in range(6):
        synchronize()
        start = time.perf_counter()
        left @ left
        synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def memory_peak(device: torch.device, synchronize: Callable[[], None]) -> float:
    """Measure the bytes per second that a large copy reads and writes, the best of several."""
    source = torch.ones((2**30 if device.type == "cuda" else 2**26), device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        synchronize()
        start = time.perf_counter()
        target.copy_(source)
        synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best

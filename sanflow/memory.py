"""Handle a lack of memory: compute smaller batches, or raise an error that says how to need less.

Torch is not imported here: its error is recognised by its text, so that every command can report it.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

from sanflow.errors import OutOfMemoryError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Texts of errors of torch and its libraries, in addition to the types MemoryError and torch.OutOfMemoryError.
SIGNS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory of the GPU or of the machine ran out.

    Example:
        >>> is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB."))
        True
        >>> is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
        False
    """
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
    )


def out_of_memory(error: BaseException) -> OutOfMemoryError:
    """Make the error for memory that ran out, with what to do about it."""
    # After this, torch's message describes the state of its allocator and variables that may be set.
    reported = str(error).split("\n", 1)[0].split(" Of the allocated memory")[0].strip() or type(error).__name__
    return OutOfMemoryError(
        f"Expected enough memory, but got: {reported} To need less, lower `batch_size` (training) or `input_size`, or "
        "choose a smaller encoder. If other programs or jobs use the same GPU (`nvidia-smi`), end them or set "
        "`slots_per_gpu: 1`."
    )


def batches_that_fit(n: int, batch_size: int, compute: Callable[[slice], Result]) -> Iterator[tuple[slice, Result]]:
    """Compute n items in batches, with half the batch size each time that memory runs out.

    Finished results are kept, and the smaller batch size is used for the rest. So results may depend on the
    batch size only by rounding.

    Arguments:
        n: Number of items.
        batch_size: Items at once, at first.
        compute: Gives the result of a slice of the items. It is called again with a smaller slice after a failure.

    Yields:
        Each slice with its result, in order.

    Raises:
        OutOfMemoryError: If one item alone needs too much.

    Example:
        >>> def mean(part):
        ...     if part.stop - part.start > 2:
        ...         raise MemoryError
        ...     return (part.start + part.stop - 1) / 2
        >>> [(part.start, part.stop, result) for part, result in batches_that_fit(5, 4, mean)]
        [(0, 2, 0.5), (2, 4, 2.5), (4, 5, 4.0)]
    """
    start = 0
    while start < n:
        part = slice(start, min(start + batch_size, n))
        try:
            result = compute(part)
        except (MemoryError, RuntimeError) as error:
            size = part.stop - part.start
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise out_of_memory(error) from error
            batch_size = size // 2
        else:
            start = part.stop
            yield part, result
            continue
        # Here the error is freed, and with it the tensors that its traceback held.
        logger.warning("Out of memory with batches of %d: continuing with batches of %d.", size, batch_size)
        _give_back_unused()


def _give_back_unused() -> None:
    """Return cached blocks of GPU memory, which may be too small for the next batch, to the driver."""
    torch = sys.modules.get("torch")
    if torch is not None:
        with suppress(RuntimeError):
            torch.cuda.empty_cache()

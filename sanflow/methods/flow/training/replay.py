"""Launch all kernels of a step on a GPU at once, as a CUDA graph, and independent ones beside each other.

A step is about 2,900 kernels for a WideResNet-50-2; launched one by one they take longer than they run.
"""

import os
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from sanflow.errors import DeviceError

Result = TypeVar("Result")

SWITCH = "SANFLOW_CUDA_GRAPHS"
# Calls before the capture, in which libraries choose their kernels and the optimizer makes its moments.
EAGER_CALLS = 2


class Replayed(Generic[Result]):
    """A function of tensors on a GPU: run as it is in the first calls, then captured once and replayed.

    The function must do the same work in each call, read nothing back from the GPU, and change tensors in place, never
    exchange them.

    Arguments:
        function: Takes tensors, or None, and returns tensors in any structure.
        what: Names it in the error.

    Attributes:
        has_read: The event on the GPU after which the inputs of the last call are not needed any more.
    """

    def __init__(self, function: Callable[..., Result], what: str) -> None:
        self._function, self._what = function, what
        self._stream, self.has_read = torch.cuda.Stream(), torch.cuda.Event()
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor | None] = []
        self._outputs: Result

    def __call__(self, *inputs: Tensor | None) -> Result:
        """Run the function.

        Arguments:
            inputs: Of the same shapes, types and layouts in every call.

        Returns:
            Its tensors; the next call may write over them.

        Raises:
            DeviceError: If it cannot be captured.
            torch.OutOfMemoryError: If memory does not suffice.
        """
        self._calls += 1
        if self._calls <= EAGER_CALLS:
            outputs = self._run(inputs)
            self.has_read.record()
            return outputs
        graph = self._graph or self._capture(inputs)
        for kept, given in zip(self._inputs, inputs, strict=True):
            assert (kept is None) == (given is None)
            if kept is not None and given is not None:
                kept.copy_(given, non_blocking=True)
        self.has_read.record()
        graph.replay()
        return self._outputs

    def _run(self, inputs: tuple[Tensor | None, ...]) -> Result:
        # Beside the default stream, as a capture is: a gradient's buffers remember the stream of their first use.
        present = torch.cuda.current_stream()
        self._stream.wait_stream(present)
        with torch.cuda.stream(self._stream):
            outputs = self._function(*inputs)
        present.wait_stream(self._stream)
        return outputs

    def _capture(self, inputs: tuple[Tensor | None, ...]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        self._inputs = [None if given is None else given.clone() for given in inputs]
        try:
            # Other threads, which make batches and save states, go on using the GPU.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._outputs = self._function(*self._inputs)
        except RuntimeError as error:
            # The end of a failed capture fails too; the first error has the reason. Afterwards torch's allocator cannot
            # be relied on, so the process ends.
            first = error.__context__ or error
            if isinstance(first, torch.OutOfMemoryError):
                raise first from None
            reason = str(first).strip().partition("\n")[0]
            raise DeviceError(
                f"Expected to capture {self._what} as a CUDA graph, but this failed: {reason}. "
                f"Set {SWITCH}=0 in the environment to launch its kernels one by one, which is slower; the "
                "training then goes on from its last state."
            ) from error
        self._graph = graph
        return graph


def uses_cuda_graphs(device: torch.device) -> bool:
    """Return whether steps on the device are replayed as CUDA graphs."""
    return device.type == "cuda" and os.environ.get(SWITCH) != "0"


def side_by_side(calls: Sequence[Callable[[], Result]], streams: Sequence[torch.cuda.Stream]) -> list[Result]:
    """Run independent calls, each on a stream of its own, which later work waits for; without streams, in turn."""
    if not streams:
        return [call() for call in calls]
    present = torch.cuda.current_stream()
    found = []
    for call, stream in zip(calls, streams, strict=True):
        stream.wait_stream(present)
        with torch.cuda.stream(stream):
            found.append(call())
    for stream in streams:
        present.wait_stream(stream)
    return found

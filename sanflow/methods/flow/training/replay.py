"""Launch all kernels of a step on a GPU at once, as a CUDA graph, and independent ones beside each other.

A step is about 2,500 kernels for a WideResNet-50-2; launched one by one they take longer than they run.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Calls before the capture, in which libraries choose their kernels and the optimizer makes its moments.
EAGER_CALLS = 2


class Replayed(Generic[Result]):
    """A function of tensors on a GPU: run as it is in the first calls, then captured once and replayed.

    The function must do the same work in each call, read nothing back from the GPU, and change tensors in place, never
    exchange them. If it cannot be captured, a warning says so and it goes on being run as it is, with the same result.

    Arguments:
        function: Takes tensors, or None, and returns tensors in any structure.
        what: Names it in the warning.

    Attributes:
        has_read: The event on the GPU after which the inputs of the last call are not needed any more.
    """

    def __init__(self, function: Callable[..., Result], what: str) -> None:
        self._function, self._what = function, what
        self._stream, self.has_read = torch.cuda.Stream(), torch.cuda.Event()
        self._calls, self._can_capture = 0, True
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor | None] = []
        self._outputs: Result

    def __call__(self, *inputs: Tensor | None) -> Result:
        """Run the function.

        Arguments:
            inputs: Of the same shapes, types and layouts in every call.

        Returns:
            Its tensors; the next call may write over them.
        """
        self._calls += 1
        if self._graph is None and self._calls > EAGER_CALLS and self._can_capture:
            self._capture(inputs)
        if self._graph is None:
            outputs = self._run(inputs)
            self.has_read.record()
            return outputs
        for kept, given in zip(self._inputs, inputs, strict=True):
            if kept is not None and given is not None:
                kept.copy_(given, non_blocking=True)
        self.has_read.record()
        self._graph.replay()
        return self._outputs

    def _run(self, inputs: tuple[Tensor | None, ...]) -> Result:
        # Beside the default stream, as a capture is: a gradient's buffers remember the stream of their first use.
        present = torch.cuda.current_stream()
        self._stream.wait_stream(present)
        with torch.cuda.stream(self._stream):
            outputs = self._function(*inputs)
        present.wait_stream(self._stream)
        return outputs

    def _capture(self, inputs: tuple[Tensor | None, ...]) -> None:
        graph = torch.cuda.CUDAGraph()
        kept = [None if given is None else given.clone() for given in inputs]
        try:
            # Other threads, which make batches and save states, go on using the GPU.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                outputs = self._function(*kept)
        except RuntimeError as error:
            self._can_capture = False
            reason = str(error).strip().partition("\n")[0]
            logger.warning("%s cannot be captured as a CUDA graph, so it runs slower: %s", self._what, reason)
        else:
            self._graph, self._inputs, self._outputs = graph, kept, outputs


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

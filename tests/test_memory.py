"""Memory that runs out: which errors say so, smaller batches, the exit code."""

import subprocess
import sys
import weakref

import pytest
import torch

from sanflow import cli
from sanflow.errors import OutOfMemoryError
from sanflow.memory import batches_that_fit, is_out_of_memory, out_of_memory

TORCHS = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 7.25 GiB is "
    "free. Of the allocated memory 70.00 GiB is allocated by PyTorch, and 1.00 GiB is reserved but unallocated."
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError(TORCHS), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_which_errors_mean_that_memory_ran_out(error, expected):
    assert is_out_of_memory(error) is expected


def fits(most: int, calls: list[int]):
    """A stand-in for a model on a GPU in which batches of at most so many images fit."""

    def compute(part: slice) -> list[int]:
        calls.append(part.stop - part.start)
        if part.stop - part.start > most:
            raise torch.OutOfMemoryError(TORCHS)
        return list(range(part.start, part.stop))

    return compute


@pytest.mark.parametrize(
    ("most", "expected"),
    [(32, [32, 32, 6]), (16, [32, 16, 16, 16, 16, 6]), (7, [32, 16, 8, *[4] * 17, 2])],
)
def test_batches_are_halved_until_they_fit_and_nothing_is_computed_twice(most, expected):
    calls: list[int] = []
    found = list(batches_that_fit(70, 32, fits(most, calls)))
    assert calls == expected
    assert [item for _, result in found for item in result] == list(range(70))
    assert [item for part, _ in found for item in range(70)[part]] == list(range(70))


def test_memory_that_runs_out_later_keeps_what_is_done(caplog):
    """Another program takes memory after the first batch."""
    calls: list[int] = []

    def compute(part: slice) -> int:
        calls.append(part.start)
        if part.start >= 8 and part.stop - part.start > 3:
            raise RuntimeError("CUDA error: out of memory")
        return part.stop - part.start

    assert [result for _, result in batches_that_fit(17, 8, compute)] == [8, 2, 2, 2, 2, 1]
    assert calls == [0, 8, 8, 8, 10, 12, 14, 16]
    assert "Out of memory with batches of 8: continuing with batches of 4." in caplog.text


def test_a_last_batch_that_does_not_fit_is_halved_itself():
    calls: list[int] = []
    list(batches_that_fit(5, 32, fits(2, calls)))
    assert calls == [5, 2, 2, 1]


def test_one_image_that_does_not_fit_is_an_error_with_a_remedy():
    with pytest.raises(
        OutOfMemoryError, match=r"Tried to allocate 20\.00 GiB.*7\.25 GiB is free\. To need less, lower"
    ):
        list(batches_that_fit(4, 4, fits(0, [])))
    assert "reserved" not in str(out_of_memory(torch.OutOfMemoryError(TORCHS)))
    assert "MemoryError" in str(out_of_memory(MemoryError()))


def test_other_errors_pass():
    def compute(part: slice) -> None:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        list(batches_that_fit(4, 4, compute))


def test_what_failed_is_freed_before_the_next_try():
    """The tensors of the batch that failed must not fill the memory of the next one."""
    made: list[weakref.ref] = []

    def compute(part: slice) -> int:
        assert all(reference() is None for reference in made)
        features = torch.zeros(part.stop - part.start)
        made.append(weakref.ref(features))
        if len(features) > 1:
            raise torch.OutOfMemoryError(TORCHS)
        return len(features)

    assert [result for _, result in batches_that_fit(2, 4, compute)] == [1, 1]


@pytest.mark.parametrize(("error", "code"), [(torch.OutOfMemoryError(TORCHS), 9), (MemoryError(), 9)])
def test_commands_end_with_their_own_exit_code(monkeypatch, capsys, error, code):
    def app() -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == code == OutOfMemoryError.exit_code
    assert "Expected enough memory, but got" in capsys.readouterr().err
    assert f"{code} out of memory" in cli.EXIT_CODES


def test_a_defect_still_shows_its_traceback(monkeypatch):
    def app() -> None:
        raise RuntimeError("shapes")

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(RuntimeError, match="shapes"):
        cli.main()


def test_torch_is_not_imported_for_it():
    code = (
        "import sys, sanflow.memory; list(sanflow.memory.batches_that_fit(2, 1, str)); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

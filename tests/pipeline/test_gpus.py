"""Which GPUs a process may use: a stand-in for NVML, and one for CUDA's library."""

import logging
import shutil
import subprocess
import sys
import types

import pytest

from sanflow.errors import DeviceError
from sanflow.pipeline import gpus
from sanflow.pipeline.gpus import cuda_order, gpu_pool

LOST, NOT_FOUND, NOT_SUPPORTED, LIBRARY_NOT_FOUND, VERSION_MISMATCH = 15, 6, 3, 12, 18


class NVMLError(Exception):
    """As that of nvidia-ml-py: a number."""

    def __init__(self, value: int) -> None:
        super().__init__(f"error {value}")
        self.value = value


def nvml(*machine: str | list[str] | None, broken: int | None = None) -> types.ModuleType:
    """A stand-in for pynvml: each GPU is its UUID, the UUIDs of its MIG slices, or None for a dead one."""

    def start() -> None:
        if broken is not None:
            raise NVMLError(broken)

    def handle(number: int) -> tuple:
        if machine[number] is None:
            raise NVMLError(LOST)
        return ("gpu", number)

    def name(handle: tuple) -> str:
        kind, number, *place = handle
        entry = machine[number]
        if kind == "slice":
            return entry[place[0]]
        return entry if isinstance(entry, str) else f"GPU-parent{number}"

    def mode(handle: tuple) -> list[int]:
        if machine[handle[1]] == "GPU-old":
            raise NVMLError(NOT_SUPPORTED)
        divided = int(isinstance(machine[handle[1]], list))
        return [divided, divided]

    def slice_handle(handle: tuple, place: int) -> tuple:
        # As on a real one, numbers of slices have gaps: every other one is free.
        if place % 2 or place // 2 >= len(machine[handle[1]]):
            raise NVMLError(NOT_FOUND)
        return ("slice", handle[1], place // 2)

    module = types.ModuleType("pynvml")
    module.NVMLError = NVMLError
    module.nvmlInit = start
    module.nvmlDeviceGetCount = lambda: len(machine)
    module.nvmlDeviceGetHandleByIndex = handle
    module.nvmlDeviceGetUUID = name
    module.nvmlDeviceGetMigMode = mode
    module.nvmlDeviceGetMaxMigDeviceCount = lambda handle: 7
    module.nvmlDeviceGetMigDeviceHandleByIndex = slice_handle
    return module


@pytest.fixture
def machine(monkeypatch):
    """A function that gives this machine other GPUs, in the order of NVML and in that of CUDA."""

    def become(*found: str | list[str] | None, broken: int | None = None, order: tuple[str, ...] = ()) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", nvml(*found, broken=broken))
        monkeypatch.setattr(gpus, "cuda_order", lambda environment: list(order))

    return become


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["GPU-aa", "GPU-bb"]),
        ("1", ["GPU-bb"]),
        ("1,0", ["GPU-bb", "GPU-aa"]),
        (" 1 , 0 ", ["GPU-bb", "GPU-aa"]),
        ("0,0", ["GPU-aa"]),
        ("GPU-bb", ["GPU-bb"]),
        ("GPU-b", ["GPU-bb"]),
        ("MIG-cc", ["MIG-cc"]),
        ("MIG-GPU-aa/1/0,MIG-dd", ["MIG-GPU-aa/1/0", "MIG-dd"]),
        ("", []),
        ("NoDevFiles", []),
        ("0,-1,1", ["GPU-aa"]),
        ("1,7,0", ["GPU-bb"]),
    ],
)
def test_the_pool_is_what_cuda_would_see(machine, visible, expected):
    machine("GPU-aa", "GPU-bb")
    variables = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert gpu_pool(variables if visible is None else variables | {"CUDA_VISIBLE_DEVICES": visible}) == expected


@pytest.mark.parametrize("visible", ["7", "GPU-", "GPU-zz", "two"])
def test_a_gpu_that_is_not_there_is_an_error_and_not_the_cpu(machine, visible):
    machine("GPU-aa", "GPU-bb")
    with pytest.raises(DeviceError, match=f"name a GPU that works, but got {visible}; this machine has GPU-aa, GPU-bb"):
        gpu_pool({"CUDA_VISIBLE_DEVICES": visible})


def test_indices_count_as_cuda_counts(machine, caplog):
    machine("GPU-slow", "GPU-fast", order=("GPU-fast", "GPU-slow"))
    assert gpu_pool({"CUDA_VISIBLE_DEVICES": "0"}) == ["GPU-fast"]
    assert gpu_pool({"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}) == ["GPU-fast"]
    assert gpu_pool({"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == ["GPU-slow"]
    assert not caplog.records
    machine("GPU-slow", "GPU-fast", order=())
    assert gpu_pool({"CUDA_VISIBLE_DEVICES": "0"}) == ["GPU-slow"]
    assert "CUDA does not report in which order" in caplog.text


def test_one_dead_gpu_leaves_the_others(machine, caplog):
    machine("GPU-aa", None, "GPU-cc")
    assert gpu_pool({}) == ["GPU-aa", "GPU-cc"]
    assert "GPU 1 of this machine is left out, because NVML reports: error 15" in caplog.text
    by_address = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert gpu_pool(by_address | {"CUDA_VISIBLE_DEVICES": "1,2"}) == ["GPU-cc"]
    with pytest.raises(DeviceError, match="this machine has GPU-aa, a dead GPU, GPU-cc"):
        gpu_pool(by_address | {"CUDA_VISIBLE_DEVICES": "1"})


def test_dead_gpus_only_are_an_error_and_not_the_cpu(machine):
    machine(None, None)
    with pytest.raises(DeviceError, match="Expected a GPU that works, but none of this machine's 2 does"):
        gpu_pool({})


def test_a_divided_gpu_counts_as_its_slices(machine, caplog):
    machine("GPU-old", ["MIG-x", "MIG-y"], [])
    assert gpu_pool({}) == ["GPU-old", "MIG-x", "MIG-y"]
    assert "GPU 2 of this machine is left out, because it is in MIG mode and has no slices" in caplog.text
    assert gpu_pool({"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == ["MIG-x", "MIG-y"]
    assert gpu_pool({"CUDA_VISIBLE_DEVICES": "GPU-parent1"}) == ["MIG-x", "MIG-y"]
    assert gpu_pool({"CUDA_VISIBLE_DEVICES": "MIG-y"}) == ["MIG-y"]


def test_without_nvml_cuda_is_asked(machine):
    machine(broken=LIBRARY_NOT_FOUND, order=("GPU-aa", "GPU-bb"))
    assert gpu_pool({}) == ["GPU-aa", "GPU-bb"]
    assert gpu_pool({"CUDA_VISIBLE_DEVICES": "GPU-bb"}) == ["GPU-bb"]


def test_without_any_driver_there_is_no_gpu_but_what_is_named(machine):
    machine(broken=LIBRARY_NOT_FOUND)
    assert gpu_pool({}) == []
    assert gpu_pool({"CUDA_VISIBLE_DEVICES": "0,1"}) == ["0", "1"]


def test_a_driver_that_was_updated_in_use_is_an_error_and_not_the_cpu(machine):
    machine(broken=VERSION_MISMATCH)
    with pytest.raises(DeviceError, match=r"working NVIDIA driver, but NVML reports: error 18.*restart the machine"):
        gpu_pool({})


def test_the_numbers_are_those_of_nvml():
    import pynvml

    assert pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH == gpus.VERSION_MISMATCH
    with pytest.raises(pynvml.NVMLError) as caught:
        raise pynvml.NVMLError(gpus.VERSION_MISMATCH)
    assert caught.value.value == gpus.VERSION_MISMATCH


LIBCUDA = """
int cuInit(unsigned flags) { return %d; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int number) { *device = 40 + number; return 0; }
int cuDeviceGetUuid(unsigned char *uuid, int device) {
    for (int i = 0; i < 16; i++) uuid[i] = device + i;
    return 0;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the stand-in of libcuda")
@pytest.mark.parametrize(
    ("result", "expected"),
    [(0, ["GPU-28292a2b-2c2d-2e2f-3031-323334353637", "GPU-292a2b2c-2d2e-2f30-3132-333435363738"]), (100, [])],
)
def test_cuda_is_asked_for_its_order(tmp_path, result, expected):
    (tmp_path / "cuda.c").write_text(LIBCUDA % result)
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "cuda.c"], check=True)
    assert cuda_order({"LD_LIBRARY_PATH": str(tmp_path)}) == expected


def test_without_cuda_there_is_no_order(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a driver")
    assert cuda_order({"LD_LIBRARY_PATH": str(tmp_path)}) == []

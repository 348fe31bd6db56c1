"""The table of GPUs: each is known by its driver's name, and a user gets the one he named."""

import pytest

from green_tune.errors import ConfigError, HardwareMismatch
from green_tune.hardware import GPUS, Device, Gpu, can_run, choose, choose_for, identify

CPU = Device(kind="cpu", name="Xeon, 2 threads", memory_gib=8)
DRIVER_NAMES = {
    "Tesla T4": "t4",
    "NVIDIA L4": "l4",
    "NVIDIA A100-SXM4-40GB": "a100-40",
    "NVIDIA A100-PCIE-40GB": "a100-40",
    "NVIDIA A100 80GB PCIe": "a100-80",
    "NVIDIA A100-SXM4-80GB": "a100-80",
    "Tesla V100-SXM2-16GB": "v100",
    "Tesla P100-PCIE-16GB": "p100",
    "NVIDIA A10G": "a10g",
    "NVIDIA A10": "a10",
    "NVIDIA A40": "a40",
    "NVIDIA RTX A6000": "a6000",
    "NVIDIA L40S": "l40s",
    "NVIDIA L40": "l40",
    "NVIDIA GeForce RTX 3090": "rtx3090",
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA GeForce RTX 5090": "rtx5090",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
}
RELATIVES = [  # other chips or limits, so other rows, or none
    "NVIDIA GeForce GTX 1080",
    "NVIDIA T400 4GB",
    "NVIDIA GH200 480GB",
    "NVIDIA GB200",
    "NVIDIA A100-SXM-64GB",
    "NVIDIA RTX 6000 Ada Generation",
    "NVIDIA GeForce RTX 3090 Ti",
    "NVIDIA GeForce RTX 4090 D",
    "NVIDIA GeForce RTX 4090 Laptop GPU",
    "NVIDIA GeForce RTX 5090 Laptop GPU",
]


def gpu(driver_name: str) -> Device:
    return Device(kind="cuda", name=driver_name, memory_gib=16, gpu=identify(driver_name))


T4, A100, UNKNOWN = map(gpu, ("Tesla T4", "NVIDIA A100-SXM4-40GB", "NVIDIA GeForce GTX 1080"))


@pytest.mark.parametrize(("driver_name", "row"), DRIVER_NAMES.items())
def test_a_gpu_is_known_by_its_drivers_name(driver_name: str, row: str) -> None:
    assert gpu(driver_name).gpu_type == row
    assert gpu(driver_name.lower()).gpu_type == row


@pytest.mark.parametrize("driver_name", RELATIVES)
def test_a_relative_of_a_gpu_is_not_taken_for_it(driver_name: str) -> None:
    assert identify(driver_name) is None
    assert gpu(driver_name).gpu_type == "unknown"


def test_every_row_is_met_above() -> None:
    assert [row.name for row in GPUS] == list(dict.fromkeys(row.name for row in GPUS))
    assert set(DRIVER_NAMES.values()) == {row.name for row in GPUS}


@pytest.mark.parametrize("row", GPUS, ids=lambda row: str(row.name))
def test_a_row_holds_together(row: Gpu) -> None:
    assert (row.bf16_tflops is None) == (row.capability < (8, 0))
    assert row.fp16_tflops >= row.fp32_tflops > 0
    assert min(row.memory_gib, row.power_limit_w, row.bandwidth_gb_per_s) > 0
    assert row.found_in


def test_a_cpu_is_a_type_of_its_own() -> None:
    assert CPU.gpu_type == "cpu"


@pytest.mark.parametrize("asked", ["a100", "A100", "a100-40", "A100-40"])
def test_a_gpu_is_chosen_by_row_or_family_in_any_case(asked: str) -> None:
    assert choose(asked, [UNKNOWN, T4, A100], CPU) is A100


@pytest.mark.parametrize(("driver_name", "row"), DRIVER_NAMES.items())
def test_every_gpu_can_be_asked_for_by_its_family(driver_name: str, row: str) -> None:
    device = gpu(driver_name)
    assert choose(row.split("-")[0], [device], CPU) is device


def test_auto_takes_the_first_gpu_known_or_not_or_else_the_cpu() -> None:
    assert choose("auto", [UNKNOWN, T4], CPU) is UNKNOWN
    assert choose("auto", [], CPU) is CPU


def test_the_cpu_can_be_asked_for_beside_a_gpu() -> None:
    assert choose("cpu", [T4], CPU) is CPU


@pytest.mark.parametrize("asked", ["a100-80", "l4"])
def test_another_gpu_is_refused_with_what_is_here_and_where_to_go(asked: str) -> None:
    with pytest.raises(HardwareMismatch) as caught:
        choose(asked, [A100, T4], CPU)
    line = str(caught.value)
    assert line.startswith(f"gpu={asked} is not in this machine; found: {A100}; {T4}. ")
    assert "gpu=auto" in line
    assert "gpu=cpu" not in line
    assert next(row.found_in for row in GPUS if row.name == asked) in line


@pytest.mark.parametrize(
    ("asked", "here"), [("l4", "L40"), ("l40", "L40S"), ("a10", "A10G"), ("h100-pcie", "H100 NVL")]
)
def test_a_name_that_begins_alike_is_another_gpu(asked: str, here: str) -> None:
    with pytest.raises(HardwareMismatch, match=f"gpu={asked} .* found: NVIDIA {here}, "):
        choose(asked, [gpu(f"NVIDIA {here}")], CPU)


def test_without_a_gpu_the_cpu_is_offered() -> None:
    with pytest.raises(HardwareMismatch, match=r"found: no GPU, a CPU .*gpu=auto or gpu=cpu.* T4 "):
        choose("t4", [], CPU)


def test_an_unknown_gpu_is_refused_with_the_table() -> None:
    with pytest.raises(ConfigError) as caught:
        choose("k80", [T4], CPU)
    line = str(caught.value)
    assert line.startswith("gpu=k80 is unknown; known: auto, cpu, t4, l4, ")
    assert all(row.name in line for row in GPUS)


def test_an_unknown_gpu_is_refused_with_the_columns_of_a_new_row() -> None:
    with pytest.raises(ConfigError) as caught:
        choose("k80", [T4], CPU)
    _, _, columns = str(caught.value).partition("a row of hardware.GPUS needs ")
    given = dict.fromkeys(columns.split(", "), 1)
    assert Gpu(name="k80", **given).memory_gib == 1  # type: ignore[arg-type]


def test_each_process_of_a_node_gets_a_gpu_of_its_own_and_all_the_same_cpu() -> None:
    two = [gpu("Tesla T4"), gpu("NVIDIA L4"), gpu("Tesla T4")]
    assert choose_for(2, "t4", two, CPU) == (two[0], two[2])
    assert choose_for(1, "auto", two, CPU) == (two[0],)
    assert choose_for(3, "cpu", two, CPU) == (CPU, CPU, CPU)
    with pytest.raises(HardwareMismatch, match=r"3 processes .* has 2 x Tesla T4"):
        choose_for(3, "t4", two, CPU)


@pytest.mark.parametrize(
    ("kernels", "capability", "runs"),
    [
        (["sm_75", "sm_80"], (8, 6), True),  # of its major capability, and older
        (["sm_75", "sm_86"], (8, 0), False),  # of a newer one
        (["sm_75", "sm_80"], (7, 0), False),  # a V100, which CUDA 13 has left
        (["sm_90a"], (9, 0), True),
        (["sm_120", "compute_120"], (12, 1), True),
        (["sm_90", "compute_90"], (10, 0), True),  # compiled as it is loaded
        (["sm_90"], (10, 0), False),
        ([], (0, 0), True),  # nobody knows
    ],
)
def test_a_kernel_is_for_its_own_generation_and_ptx_for_later_ones_too(
    kernels: list[str], capability: tuple[int, int], runs: bool
) -> None:
    assert can_run(kernels, capability) is runs

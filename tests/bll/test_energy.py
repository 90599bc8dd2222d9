"""Energy windows on a counter whose truth is known: error bounds, wrap, noise, resets."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_energy import SimulatedDevice

from bll.bench.energy import EnergyProtocol, measure_energy
from bll.bench.energy_counters import (
    CounterReset,
    Monotone,
    NoCounter,
    NvmlCounter,
    RaplCounter,
    ZeusCheck,
    find_counter,
)
from bll.bench.energy_run import RunEnergy
from bll.bench.energy_source import EnergySource
from bll.bench.energy_windows import idle_window, tick_aligned_window
from bll.bench.timers import Prepared

SHORT = EnergyProtocol(window_seconds=2.0, trials=5, idle_seconds=2.0, cooldown_seconds=0.5)


def naive_error(device: SimulatedDevice, seconds: float) -> float:
    """Relative error of reading the counter at any two moments."""
    begin, first, steps = device.joules(), device.now(), device.steps
    while device.now() - first < seconds:
        device.step()
    found = (device.joules() - begin) / (device.steps - steps)
    return found / device.true_joules_per_step - 1


@settings(max_examples=150)
@given(
    tick=st.floats(0.02, 0.1),
    jitter=st.floats(0.0, 0.5),
    step=st.floats(2e-4, 8e-3),
    busy=st.floats(100.0, 700.0),
    seed=st.integers(0, 10_000),
)
def test_a_window_is_right_within_its_bound(tick, jitter, step, busy, seed):
    device = SimulatedDevice(
        busy_watts=busy,
        step_seconds=step,
        step_jitter=0.0,
        tick=(tick, tick * (1 + jitter)),
        seed=seed,
    )
    chunk = max(1, round(0.01 / step))
    window = tick_aligned_window(device, device.step, chunk, 5.0, device)
    assert window.seconds >= 5.0
    error = abs(window.joules_per_step / device.true_joules_per_step - 1)
    # The register holds whole millijoules.
    assert error <= window.error_bound + 1e-3 / window.joules
    assert window.error_bound <= 2.2 * max(0.01, step) / 5.0
    assert window.watts == pytest.approx(busy, rel=window.error_bound + 1e-6)


def worst_errors(seconds: float, devices: int) -> tuple[float, float, float]:
    """Worst relative error over random devices: read at any moment, aligned, and its bound."""
    numbers = random.Random(1)
    worst = [0.0, 0.0, 0.0]
    for seed in range(devices):
        tick, step = numbers.uniform(0.02, 0.1), numbers.uniform(5e-4, 5e-3)
        # Work begins right after idling, as it does without care for ticks.
        idle = numbers.uniform(0.1, 5.0)
        found = []
        for aligned in (False, True):
            device = SimulatedDevice(
                tick=(tick, 1.2 * tick), step_seconds=step, step_jitter=0.0, seed=seed
            )
            device.sleep(idle)
            if not aligned:
                found.append(abs(naive_error(device, seconds)))
                continue
            chunk = max(1, round(0.01 / step))
            window = tick_aligned_window(device, device.step, chunk, seconds, device)
            found.append(abs(window.joules_per_step / device.true_joules_per_step - 1))
            found.append(window.error_bound)
        worst = [max(pair) for pair in zip(worst, found, strict=True)]
    return worst[0], worst[1], worst[2]


@pytest.mark.parametrize("seconds", [2.0, 5.0, 10.0])
def test_reading_at_any_moment_is_several_times_worse(seconds):
    naive, aligned, bound = worst_errors(seconds, 40)
    assert naive > 5 * aligned
    assert aligned <= bound + 1e-5
    assert bound < 0.013 / seconds


def test_noise_enters_twice_and_trials_average_it():
    for seed in range(20):
        device = SimulatedDevice(noise_joules=2.0, seed=seed)
        window = tick_aligned_window(device, device.step, 10, 5.0, device)
        error = abs(window.joules_per_step / device.true_joules_per_step - 1)
        # A counter that never falls rectifies its noise: five standard deviations each side.
        assert error <= window.error_bound + 2 * 5 * 2.0 / window.joules + 2e-3


@pytest.mark.parametrize("start", [0.0, 0.4, 0.9])
def test_a_counter_that_wraps(start):
    wrap = 700.0
    device = SimulatedDevice(wrap=wrap, start=start * wrap)
    window = tick_aligned_window(device, device.step, 10, 5.0, device)
    assert window.joules > 2 * wrap
    assert window.joules_per_step == pytest.approx(device.true_joules_per_step, rel=0.01)


def test_a_counter_that_falls_without_wrapping_is_not_believed():
    readings = iter([5.0, 6.0, 1.0])
    count = Monotone(lambda: next(readings), wrap=None)
    assert count.joules() == 6.0
    with pytest.raises(CounterReset, match=r"from 6\.000 J to 1\.000 J"):
        count.joules()


def test_trials_with_a_reset_are_discarded():
    device = SimulatedDevice(reset_at=6.0)
    found = measure_energy({"a": device.step}, device, protocol=SHORT, clock=device)["a"]
    assert found.discarded == 1
    assert len(found.trials) == 4
    assert found.gross_joules_per_step == pytest.approx(device.true_joules_per_step, rel=0.02)


def test_a_dead_counter_is_no_counter():
    device = SimulatedDevice(stopped=True)
    with pytest.raises(NoCounter, match="simulated did not change for"):
        tick_aligned_window(device, device.step, 10, 5.0, device)
    with pytest.raises(NoCounter, match="did not change"):
        idle_window(device, 5.0, 0.01, device)


def test_gross_and_net_of_two_forms_in_turn():
    device = SimulatedDevice(idle_watts=100.0, busy_watts=500.0, step_seconds=0.001)

    def longer() -> None:
        device.step()
        device.step()
        device.step()

    found = measure_energy(
        {"one": device.step, "three": longer},
        device,
        moved_bytes={"one": 10**9},
        protocol=EnergyProtocol(),
        clock=device,
    )
    one, three = found["one"], found["three"]
    assert len(one.trials) == 5
    assert one.gross_joules_per_step == pytest.approx(0.5, rel=0.01)
    assert one.net_joules_per_step == pytest.approx(0.4, rel=0.01)
    assert three.gross_joules_per_step == pytest.approx(1.5, rel=0.01)
    assert one.idle_watts == pytest.approx(100.0, rel=0.01)
    assert one.watts == pytest.approx(500.0, rel=0.01)
    assert one.seconds_per_step == pytest.approx(0.001, rel=0.01)
    assert one.picojoules_per_byte == pytest.approx(1e12 * one.net_joules_per_step / 1e9)
    assert three.picojoules_per_byte is None
    assert one.spread < 0.01
    assert one.zeus_joules_per_step is None and one.zeus_reason


def test_idle_is_cool_and_windows_are_long_enough():
    device = SimulatedDevice()
    measure_energy({"a": device.step}, device, clock=device)
    # 10 s idle, then five times a cooldown of 3 s and a window of at least 5 s.
    assert device.time >= 10 + 5 * (3 + 5)


def test_another_reader_of_the_same_windows():
    device = SimulatedDevice()

    class Other:
        def begin(self) -> None:
            self.joules, self.steps = device.true_joules, device.steps

        def end(self) -> float:
            return device.true_joules - self.joules

    found = measure_energy({"a": device.step}, device, protocol=SHORT, clock=device, check=Other())[
        "a"
    ]
    assert found.zeus_joules_per_step == pytest.approx(found.gross_joules_per_step, rel=0.02)
    assert found.zeus_reason is None


class FakeNvml(ModuleType):
    NVMLError = RuntimeError

    def __init__(self, millijoules: list[int] | None) -> None:
        super().__init__("pynvml")
        self.millijoules = millijoules

    def nvmlInit(self) -> None:
        if self.millijoules is None:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> bytes:
        if uuid not in (b"GPU-0", b"GPU-1"):
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: bytes) -> int:
        assert handle == b"GPU-1"
        if not self.millijoules:
            raise self.NVMLError("GPU is lost")
        return self.millijoules.pop(0)


def test_nvml_counts_millijoules():
    counter = NvmlCounter("GPU-1", FakeNvml([1000, 2500, 4000]))
    assert counter.joules() == 2.5
    assert counter.joules() == 4.0
    with pytest.raises(NoCounter, match="NVML: Not Found"):
        NvmlCounter("GPU-7", FakeNvml([1000]))
    with pytest.raises(NoCounter, match="NVML: GPU is lost"):
        NvmlCounter("GPU-1", FakeNvml([]))


@pytest.mark.parametrize("prefix", ["", "GPU-"])
@pytest.mark.parametrize(("device", "current"), [("cuda", 1), ("cuda:1", 0)])
def test_the_gpu_that_torch_means_is_read(monkeypatch, device, current, prefix):
    # As with CUDA_VISIBLE_DEVICES=2,1: what an index means to NVML, it does not mean to torch.
    seen = [SimpleNamespace(uuid=prefix + "2"), SimpleNamespace(uuid=prefix + "1")]
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml([1000, 2500]))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "get_device_properties", seen.__getitem__)
    assert find_counter(device).joules() == 2.5


def test_a_counter_that_is_lost_does_not_end_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml([1000, 2000, 3500]))
    found = SimpleNamespace(uuid="1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)
    energy = RunEnergy(torch.device("cuda", 0))
    energy.poll()
    assert energy.to_record()["energy_j"] == 1.5
    energy.poll()
    assert energy.to_record() == {
        "energy_j": None,
        "energy_reason": "NVML: GPU is lost",
        "energy_counter": None,
    }
    energy.poll()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_reason_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml([1000]))
    with pytest.raises(NoCounter, match="NVML: torch does not tell which GPU cuda:3 is"):
        find_counter("cuda:3")


def test_without_nvml_the_reason_is_told(monkeypatch):
    with pytest.raises(NoCounter, match="NVML: Driver Not Loaded"):
        NvmlCounter("GPU-0", FakeNvml(None))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NoCounter, match="nvidia-ml-py is not installed"):
        find_counter("cuda:0")


def rapl(root: Path, packages: list[tuple[int, int]]) -> Path:
    for index, (energy, most) in enumerate(packages):
        for name in (f"intel-rapl:{index}", f"intel-rapl:{index}:0"):
            zone = root / name
            zone.mkdir(parents=True)
            (zone / "energy_uj").write_text(f"{energy}\n")
            (zone / "max_energy_range_uj").write_text(f"{most}\n")
    return root


def test_rapl_adds_up_packages_and_wraps(tmp_path):
    root = rapl(tmp_path, [(5_000_000, 10_000_000), (9_000_000, 10_000_000)])
    counter = RaplCounter(root)
    assert counter.joules() == pytest.approx(14.0)
    (root / "intel-rapl:1" / "energy_uj").write_text("1000000\n")
    assert counter.joules() == pytest.approx(16.0)
    # What a part of a package uses is in the package's count already.
    (root / "intel-rapl:0:0" / "energy_uj").write_text("9000000\n")
    assert counter.joules() == pytest.approx(16.0)


def test_without_rapl_the_reason_is_told(tmp_path):
    with pytest.raises(NoCounter, match="has no package domain"):
        RaplCounter(tmp_path)
    rapl(tmp_path, [(1, 1)])
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("secret\n")
    with pytest.raises(NoCounter, match="cannot be read"):
        RaplCounter(tmp_path)


def test_zeus_is_asked_where_it_is_installed(monkeypatch):
    class Monitor:
        def __init__(self, gpu_indices: list[int]) -> None:
            self.gpus = gpu_indices

        def begin_window(self, name: str) -> None:
            self.name = name

        def end_window(self, name: str) -> SimpleNamespace:
            assert name == self.name
            return SimpleNamespace(gpu_energy=dict.fromkeys(self.gpus, 21.0))

    module = ModuleType("zeus.monitor")
    module.ZeusMonitor = Monitor
    monkeypatch.setitem(sys.modules, "zeus", ModuleType("zeus"))
    monkeypatch.setitem(sys.modules, "zeus.monitor", module)
    check = ZeusCheck([0, 1])
    check.begin()
    assert check.end() == 42.0
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    with pytest.raises(NoCounter, match="zeus is not installed"):
        ZeusCheck()


def test_the_energy_of_a_run_goes_into_its_summary():
    device = SimulatedDevice()
    energy = RunEnergy(torch.device("cpu"), counter=device)
    for _ in range(5000):
        device.step()
    energy.poll()
    record = energy.to_record()
    assert record["energy_counter"] == "simulated" and record["energy_reason"] is None
    two_ticks = 2 * 0.1 * device.busy_watts
    assert record["energy_j"] == pytest.approx(device.true_joules, abs=two_ticks)


def test_a_run_without_a_counter_or_with_a_part_of_it_says_why():
    resumed = RunEnergy(torch.device("cpu"), resumed=True, counter=SimulatedDevice())
    resumed.poll()
    assert resumed.to_record()["energy_j"] is None
    assert "resumed" in resumed.to_record()["energy_reason"]
    broken = RunEnergy(torch.device("cpu"), counter=SimulatedDevice())
    assert broken._counter is not None
    broken._counter = Falling()
    broken.poll()
    assert broken.to_record() == {
        "energy_j": None,
        "energy_reason": "from 2.000 J to 1.000 J",
        "energy_counter": None,
    }


class Falling:
    name = "falling"

    def __init__(self) -> None:
        readings = iter([2.0, 1.0])
        self.count = Monotone(lambda: next(readings), wrap=None)

    def joules(self) -> float:
        return self.count.joules()


def test_an_entry_gets_energy_per_call():
    device = SimulatedDevice(idle_watts=100.0, busy_watts=500.0, step_seconds=0.001)

    def sample() -> float:
        for _ in range(4):
            device.step()
        return 0.001

    source = EnergySource(device, None, SHORT, device, None, "zeus is not installed")
    found = source.fields({"ours": Prepared(sample, "simulated", 4)}, 10**9)
    ours = found["energy"]["ours"]
    assert found["energy_reason"] is None
    assert ours["gross_joules_per_step"] == pytest.approx(0.5, rel=0.02)
    assert ours["net_joules_per_step"] == pytest.approx(0.4, rel=0.02)
    assert ours["picojoules_per_byte"] == pytest.approx(400.0, rel=0.02)
    assert ours["zeus_reason"] == "zeus is not installed"


def test_an_entry_without_a_counter_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = EnergySource.of("cuda", asked=True).fields({}, 0)
    assert found["energy"] is None and "nvidia-ml-py" in found["energy_reason"]
    assert EnergySource().fields({}, 0)["energy_reason"] == "not asked for (--energy)"
    device = SimulatedDevice(stopped=True)
    dead = EnergySource(device, None, SHORT, device)
    found = dead.fields({"ours": Prepared(device.step, "simulated", 1)}, 0)
    assert found["energy"] is None and "did not change" in found["energy_reason"]

"""Recorded output of real machines is read right, and what is unknown stays cautious."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.load import entries
from catalog.score import recommend
from tasks.system import hardware

MACHINES = Path(__file__).parents[2] / "fixtures" / "machines"
RECORDINGS = sorted(MACHINES.glob("*.txt"))


def recorded(name: str):
    """Read one recording."""
    return hardware.parse_fixture((MACHINES / f"{name}.txt").read_text())


@pytest.mark.parametrize(
    ("name", "chip", "gpu", "bandwidth", "gib"),
    [
        ("m1-pro-16", "M1 Pro", 14, 200, 16),
        ("m1-pro-32", "M1 Pro", 14, 200, 32),
        ("m1-pro-macbook", "M1 Pro", 16, 200, 16),
        ("m1-under-rosetta", "M1", 7, 68.25, 8),
        ("m1-max-32", "M1 Max", 32, 400, 32),
        ("m2-24", "M2", 8, 100, 24),
        ("m2-pro-mini", "M2 Pro", 16, 200, 32),
        ("m2-pro-macbook", "M2 Pro", 19, 200, 16),
        ("m2-max-96", "M2 Max", 38, 400, 96),
        ("m2-ultra-192", "M2 Ultra", 60, 800, 192),
        ("m3-16", "M3", 8, 100, 16),
        ("m3-pro-18", "M3 Pro", 14, 150, 18),
        ("m3-max-36", "M3 Max", 30, 300, 36),
        ("m3-ultra-studio", "M3 Ultra", 80, 819, 512),
        ("m4-16", "M4", 8, 120, 16),
        ("m4-pro-mini-24", "M4 Pro", 16, 273, 24),
        ("m4-pro-64", "M4 Pro", 20, 273, 64),
        ("m4-max-128", "M4 Max", 40, 546, 128),
        ("m5-max-48", "M5 Max", 40, 614, 48),
        ("m5-max-128", "M5 Max", 40, 614, 128),
        ("m5-max-two-core-types", "M5 Max", 40, 614, 48),
        ("m5-pro-mini", "M5 Pro", 20, 307, 64),
        ("m6-mini-16", "M6", 12, 153.6, 16),
        ("m6-mini-32", "M6", 12, 170, 32),
    ],
)
def test_the_bin_of_a_mac_is_told(name: str, chip: str, gpu: int, bandwidth: float, gib: int):
    """By GPU cores, else by CPU cores, else by memory, else the slower one."""
    found = recorded(name)

    assert (chip, gpu, bandwidth, gib) == (found.chip, found.gpu_cores, found.bandwidth_gbps, found.memory_bytes >> 30)
    assert (found.backend, found.bandwidth_source) == ("metal", "table")


def test_every_recording_says_where_it_is_from_and_gets_a_stack():
    known = entries()
    for path in RECORDINGS:
        text = path.read_text()
        assert text.partition("$ ")[0].strip()
        assert recommend(hardware.parse_fixture(text), known).picks


def test_metal_is_believed_before_any_rule():
    found = recorded("m4-16")

    assert (found.usable_bytes, found.usable_source) == (12_713_120_000, "Metal")


def test_a_wired_limit_is_believed_where_metal_was_not_asked():
    found = recorded("m3-ultra-studio")

    assert (found.usable_bytes, found.usable_source) == (458_752 << 20, "wired limit")


def test_without_either_the_lowest_measured_share_is_taken_and_marked():
    found = recorded("m2-pro-mini")

    assert found.usable_bytes < 0.67 * found.memory_bytes
    assert "estimate" in found.usable_source


def test_power_and_swap_are_read():
    found = recorded("m5-max-128")

    assert found.power == "battery"
    assert found.swap_total_bytes == 2048 << 20
    assert round(1032.25 * (1 << 20)) == found.swap_used_bytes
    assert recorded("m5-pro-mini").power == "mains"


def test_a_decimal_comma_of_the_locale_is_read():
    """German and French Macs, powerlevel9k issue 1108."""
    assert hardware.swap("total = 2048,00M  used = 1024,50M  free = 1023,50M  (encrypted)") == (
        2048 << 20,
        int(1024.5 * (1 << 20)),
    )


@pytest.mark.parametrize("name", ["virtual", "gitlab-m1-vm"])
def test_a_virtual_mac_is_named_by_its_chip_and_marked(name: str):
    found = recorded(name)

    assert (found.chip, found.virtual) == ("M1", True)


def test_a_chip_never_seen_gets_cautious_figures_and_says_so():
    """The newest known chip of its size, its slower bin."""
    found = recorded("unknown-chip")

    assert (found.chip, found.bandwidth_gbps, found.bandwidth_source) == ("M9 Max", 460, "cautious guess")
    assert "M9 Max" in found.note


@pytest.mark.parametrize("brand", ["Apple A18 Pro", "VirtualApple @ 2.50GHz", "", "Apple M"])
def test_a_brand_that_is_no_m_chip_gets_the_oldest_figures(brand: str):
    found = hardware.parse_fixture(f"$ sysctl\nmachdep.cpu.brand_string: {brand}\nhw.memsize: 8589934592\n")

    assert found.bandwidth_gbps == 68.25
    assert found.note


def test_linux_is_read():
    found = recorded("linux-epyc")

    assert (found.chip, found.backend, found.cpu_cores, found.bandwidth_gbps) == ("AMD EPYC", "cpu", 2, 13.8)
    assert found.bandwidth_source == "measured"
    assert found.usable_bytes < found.memory_bytes


def test_linux_on_a_mac_computes_on_its_processor():
    """Asahi: lscpu names two kinds of cores, and MLX knows Metal on macOS alone."""
    found = recorded("asahi-m1-mini")

    assert (found.chip, found.backend, found.cpu_cores) == ("Firestorm-M1", "cpu", 8)


def test_a_container_has_the_memory_it_was_given():
    found = hardware.machine({hardware.MEMINFO: "MemTotal: 16000000 kB\n", hardware.CGROUP: "2147483648\n"})

    assert (found.memory_bytes, found.usable_source) == (2 << 30, "cgroup")


def test_a_card_counts_only_when_mlx_would_run_on_it():
    card = recorded("linux-h200")
    text = (MACHINES / "linux-h200.txt").read_text().replace('"gpu"', '"cpu"')

    assert (
        card.chip, card.backend, card.memory_bytes, card.bandwidth_gbps,
    ) == ("NVIDIA H200", "cuda", 143_771 << 20, 4800)  # fmt: skip
    assert "experimental" in card.note
    assert hardware.parse_fixture(text).backend == "cpu"


@pytest.mark.parametrize("text", ["", "hello", "$ ls\nfoo\n", "$ sysctl\n\n", "$ sysctl\nhw.ncpu: 8\n"])
def test_what_is_no_recording_is_refused_in_a_sentence(text: str):
    with pytest.raises(ValueError, match=r"no recording|missing"):
        hardware.parse_fixture(text)


@given(path=st.sampled_from(RECORDINGS), cut=st.integers(0, 400), junk=st.text(max_size=20))
def test_a_torn_recording_is_read_or_refused_but_never_breaks(path: Path, cut: int, junk: str):
    text = path.read_text()
    at = min(cut, len(text))
    try:
        found = hardware.parse_fixture(text[:at] + junk + text[at:])
    except ValueError:
        return

    assert found.bandwidth_gbps > 0
    assert 0 < found.usable_bytes <= found.memory_bytes


def test_this_machine_is_found_without_loading_mlx():
    """In a fresh process: detection ends, and MLX stays out."""
    code = (
        "import sys; from tasks.system import hardware as h; m = h.detect(); "
        "assert 'mlx' not in sys.modules and 'mlx.core' not in sys.modules; print(m.backend, m.bandwidth_gbps)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert said[0] in {"cpu", "metal", "cuda"}
    assert float(said[1]) > 0.5


def test_a_runner_of_github_computes_on_its_paravirtual_gpu():
    found = recorded("github-macos-15")

    assert (found.backend, found.virtual, found.usable_source) == ("metal", True, "Metal")
    assert found.usable_bytes == 5_010_800_640


def test_a_german_mac_has_its_swap():
    found = recorded("german-m1-pro")

    assert (found.swap_total_bytes, found.swap_used_bytes) == (2048 << 20, 1024 << 20)


@given(
    name=st.sampled_from([path.stem for path in RECORDINGS]),
    seed=st.randoms(use_true_random=False),
    change=st.sampled_from(["comma", "reorder", "drop", "carriage return", "unknown lines"]),
)
def test_a_changed_recording_gives_a_machine_or_a_named_refusal(name: str, seed: Random, change: str):
    """What another locale, release or terminal does to it: never another exception, never more memory than there is."""
    text = (MACHINES / f"{name}.txt").read_text()
    lines = text.splitlines()
    body = [number for number, line in enumerate(lines) if ":" in line and not line.startswith("$")]
    if change == "comma":
        text = re.sub(r"(\d)\.(\d\d[KMG])", r"\1,\2", text)
    elif change == "carriage return":
        text = text.replace("\n", "\r\n")
    elif change == "drop" and body:
        del lines[seed.choice(body)]
        text = "\n".join(lines)
    elif change == "unknown lines" and body:
        lines.insert(seed.choice(body), "sysctl: unknown oid 'hw.new'")
        text = "\n".join(lines)
    elif change == "reorder":
        head, *parts = re.split(r"(?=^\$ )", text, flags=re.MULTILINE)
        seed.shuffle(parts)
        text = head + "\n".join(parts)

    try:
        found = hardware.parse_fixture(text)
    except ValueError:
        assert change == "drop"  # of the memory's line alone
        return
    before = recorded(name)
    assert found.usable_bytes <= found.memory_bytes
    assert found.memory_bytes <= max(before.memory_bytes, hardware.SMALLEST) or change == "drop"
    if change in {"comma", "reorder", "carriage return", "unknown lines"}:
        assert found == before

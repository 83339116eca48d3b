"""What is installed for development is pinned by version and hash, and what is not is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from trust.supply import pins

ROOT = Path(__file__).resolve().parents[2]
HASH = "0123456789abcdef" * 4
PINNED = f"""# made by a program
numpy==2.4.6 \\
    --hash=sha256:{HASH} \\
    --hash=sha256:{HASH[::-1]}
onnx-ir==1.1.0 ; python_full_version < '3.12' \\
    --hash=sha256:{HASH}
onnx-ir==1.2.0 ; python_full_version >= '3.12' \\
    --hash=sha256:{HASH}
"""


def test_everything_is_pinned() -> None:
    assert pins.wrong(ROOT) == []


def test_every_constraint_but_torch_is_kept_with_hashes() -> None:
    pinned = pins.read((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line]
    for name, version in (line.split("==") for line in lines):
        if name != "torch":
            assert len(pinned[name.replace("_", "-")][version]) >= 1, name
    assert len(pinned) > len(lines)


def test_pins_are_read() -> None:
    found = pins.read(PINNED)
    assert {name: set(versions) for name, versions in found.items()} == {
        "numpy": {"2.4.6"},
        "onnx-ir": {"1.1.0", "1.2.0"},
    }
    assert found["numpy"]["2.4.6"] == {HASH, HASH[::-1]}


@pytest.mark.parametrize(
    "line",
    [
        "numpy==2.4.6",
        f"numpy>=2.4.6 --hash=sha256:{HASH}",
        f"numpy --hash=sha256:{HASH}",
        f"numpy==2.4.6 --hash=md5:{HASH[:32]}",
        f"numpy==2.4.6 --hash=sha256:{HASH[:-1]}",
        f"numpy==2.4.6 --hash=sha256:{HASH} --pre",
    ],
    ids=["no hash", "a range", "no version", "weak hash", "short hash", "another option"],
)
def test_lines_without_version_and_hashes_are_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"requirements: expected name==version and hashes by SHA-256, got 'numpy"):
        pins.read(line)


@pytest.mark.parametrize(
    ("constraint", "found"),
    [
        ("numpy==2.4.6", None),
        ("# numpy==1", None),
        ("torch==2.13.0", None),
        ("numpy==2.4.7", "numpy: expected 2.4.7 in requirements.txt, got 2.4.6"),
        ("scipy==1.17.1", "scipy: expected 1.17.1 in requirements.txt, got nothing"),
        ("onnx_ir==1.1.0", "onnx-ir: expected 1.1.0 in requirements.txt, got 1.1.0, 1.2.0"),
    ],
    ids=["kept", "comment", "torch", "another version", "missing", "two versions"],
)
def test_constraints_that_are_not_kept_are_found(constraint: str, found: str | None) -> None:
    assert list(pins.unkept(constraint, pins.read(PINNED))) == ([found] if found else [])


def test_packages_that_packages_need_are_looked_for(tmp_path: Path) -> None:
    for name in ("requirements.txt", "constraints.txt"):
        (tmp_path / name).write_text("")
    wrong = pins.wrong(tmp_path)
    for name in ("numpy", "pluggy", "mypy-extensions", "espeakng-loader"):
        assert f"{name}: needed here, not in requirements.txt" in wrong
    assert not any(line.startswith(("torch:", "nvidia-", "septr")) for line in wrong)

"""The profile of a GPU's time writes its tables; here on a CPU, at a tiny size."""

import os
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.mark.parametrize("part", ["subset", "optimizer"])
def test_a_part_says_what_it_measured(tmp_path, monkeypatch, capsys, part):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    # The module sets variables for the process that it is run as.
    with patch.dict(os.environ):
        import gpu_profile

    monkeypatch.setattr(sys, "argv", ["gpu_profile", "--out", str(tmp_path / "tables"), "--only", part])
    gpu_profile.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{part}: ")]
    assert lines
    assert all(float(line.split()[-2].replace(",", "")) >= 0 for line in lines)
    tables = {path.name for path in (tmp_path / "tables").iterdir()}
    assert tables == ({"subset.kernels.txt", "losses.kernels.txt"} if part == "subset" else set())

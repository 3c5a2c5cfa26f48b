"""What the machine can do at most: `pytest bench/bench_limits.py`.

Copying, 2 bytes moved for each that is copied, and multiplying square matrices.
"""

import pytest
import torch
from measure import DEVICE, compare, copier, multiplier


@pytest.mark.gpu
def test_limits(report, small):
    large = DEVICE == "cuda" and not small
    size, side = (2 << 30, 8192) if large else (64 << 20, 512)
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    runs = {name: multiplier(side, dtype, DEVICE) for name, dtype in dtypes.items()}
    seconds = compare({"copy": copier(size, DEVICE), **runs}, device=DEVICE)
    row = {"device": DEVICE, "copy GB/s": f"{2 * size / seconds['copy'] / 1e9:,.0f}"}
    for name in dtypes:
        row[f"mm {name} TF/s"] = f"{2 * side**3 / seconds[name] / 1e12:.2f}"
    report(**row)

"""A contrastive step against a memory bank of ten million rows on a CPU: `python examples/ten_million_rows.py`.

Two banks of 10,000,000 x 128 in bfloat16 (5 GB together), 65,536 negatives for each of 64 anchors. A gather of the
drawn rows, as the usual code does it, would hold 1 GB more in each direction; the draws here are made, scored and
forgotten piece by piece, so a step needs at most 16 MB and 8 B D bytes. `--rows` makes it smaller.
"""

import argparse
import time

import torch

from wcord_fast import CRDLoss, explain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--negatives", type=int, default=65_536)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    start = time.perf_counter()
    loss_fn = CRDLoss(64, 256, options.rows, nce_k=options.negatives, exclude="self", bank_dtype=torch.bfloat16, seed=0)
    print(f"banks of {options.rows:,} rows made in {time.perf_counter() - start:.1f} s")
    print(explain("bank_nce", num_data=options.rows, k=options.negatives, batch=64))
    student, teacher = torch.randn(64, 64, requires_grad=True), torch.randn(64, 256)
    for step in range(options.steps):
        index = torch.randint(0, options.rows, (64,))
        start = time.perf_counter()
        loss = loss_fn(student, teacher, index)
        loss.backward()
        print(f"step {step}: loss {loss.item():.3f}, {1e3 * (time.perf_counter() - start):.0f} ms")


if __name__ == "__main__":
    main()

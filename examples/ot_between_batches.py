"""Optimal transport between two batches of features as a loss: `python examples/ot_between_batches.py`.

Moves 256 points until they are distributed as 256 others are, by gradient descent on the debiased Sinkhorn divergence.
No point is told which other it belongs to: the transport plan decides, anew in every step.
"""

import argparse

import torch

from wcord_fast import functional as WF


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    torch.manual_seed(0)
    target = torch.randn(256, 2) * 0.2 + torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).repeat(128, 1)  # two clusters
    points = torch.nn.Parameter(torch.randn(256, 2) * 0.2)  # one
    adam = torch.optim.Adam([points], lr=0.05)
    how = {"cost": "sqeuclidean", "solver": "sinkhorn", "eps": 0.05, "value": "dual", "debias": True}
    for step in range(options.steps + 1):
        loss = WF.ot_cost(points, target, **how)
        if step % max(1, options.steps // 5) == 0:
            print(f"step {step:4}: divergence {loss.item():.4f}")
        adam.zero_grad()
        loss.backward()
        adam.step()
    plan = WF.ot_plan(points.detach(), target, cost="sqeuclidean", solver="sinkhorn", eps=0.05)
    print(f"plan {tuple(plan.shape)} of mass {plan.sum():.6f}; points right of the middle: {(points[:, 0] > 0).sum()}")


if __name__ == "__main__":
    main()

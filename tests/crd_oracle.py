"""CRD as published (RepDistiller's formulas), written out in float64 for given rows: independent of the library."""

from __future__ import annotations

import torch

EPS = 1e-7


def nce_per_anchor(anchor, bank, rows, z, temperature, num_data):
    """Loss of each anchor [B]; rows int64 [B, K + 1], column 0 the positive; z the normaliser itself."""
    scores = torch.einsum("bd,bkd->bk", anchor, bank[rows])
    p = torch.exp(scores / temperature) / z
    c = (rows.shape[1] - 1) / num_data
    positive = torch.log(p[:, 0] / (p[:, 0] + c + EPS))
    negative = torch.log(c / (p[:, 1:] + c + EPS)).sum(1)
    return -(positive + negative)


def estimate_z(anchor, bank, rows, temperature, num_data):
    return torch.exp(torch.einsum("bd,bkd->bk", anchor, bank[rows]) / temperature).mean() * num_data


def updated_bank(bank, index, rows, momentum):
    """All new rows from the old bank; a later duplicate overwrites an earlier one."""
    new = bank.clone()
    for b, i in enumerate(index.tolist()):
        row = momentum * bank[i] + (1 - momentum) * rows[b]
        new[i] = row / row.norm()
    return new


class PublishedCRD:
    """State and step of RepDistiller's CRDLoss in float64: embeddings as given weights, Z frozen when first set."""

    def __init__(self, embed_s, embed_t, memory_v1, memory_v2, temperature, momentum):
        self.w_s, self.w_t = embed_s, embed_t
        self.v1, self.v2 = memory_v1.clone(), memory_v2.clone()
        self.z = [None, None]
        self.temperature, self.momentum = temperature, momentum

    def step(self, f_s, f_t, idx, contrast_idx):
        n = self.v1.shape[0]
        e_s, e_t = (self._embed(f, w) for f, w in ((f_s, self.w_s), (f_t, self.w_t)))
        total = 0.0
        for side, (anchor, bank) in enumerate(((e_s, self.v2), (e_t, self.v1))):
            if self.z[side] is None:
                self.z[side] = estimate_z(anchor.detach(), bank, contrast_idx, self.temperature, n)
            total = total + nce_per_anchor(anchor, bank, contrast_idx, self.z[side], self.temperature, n).mean()
        self.v1 = updated_bank(self.v1, idx, e_s.detach(), self.momentum)
        self.v2 = updated_bank(self.v2, idx, e_t.detach(), self.momentum)
        return total

    @staticmethod
    def _embed(f, weight_bias):
        z = f @ weight_bias[0].T + weight_bias[1]
        return z / z.pow(2).sum(1, keepdim=True).sqrt()

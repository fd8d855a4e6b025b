"""Attention over sequences of variable length without the GPU that its kernel needs."""

import torch


class PlainVarlen:
    """`torch.nn.attention.varlen.varlen_attn` in plain PyTorch, which counts its calls."""

    def __init__(self):
        self.calls = 0
        self.dtypes = set()

    def __call__(
        self, query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), **grouped
    ):
        self.calls += 1
        self.dtypes |= {query.dtype, key.dtype, value.dtype}
        assert cu_seq_q is cu_seq_k
        assert cu_seq_q.dtype == torch.int32
        lengths = cu_seq_q.diff().tolist()
        assert max_q == max_k >= max(lengths)
        groups = query.shape[1] // key.shape[1]
        assert grouped == ({"enable_gqa": True} if groups > 1 else {})
        outputs = []
        for q, k, v in zip(*(tensor.split(lengths) for tensor in (query, key, value)), strict=True):
            k, v = (tensor.repeat_interleave(groups, 1) for tensor in (k, v))
            weights = torch.einsum("qhd,khd->hqk", q, k).float() * (q.shape[-1] ** -0.5 if scale is None else scale)
            distance = torch.arange(len(q))[:, None] - torch.arange(len(q))
            back, ahead = (window if window >= 0 else len(q) for window in window_size)
            weights = weights.masked_fill((distance > back) | (distance < -ahead), -torch.inf)
            outputs.append(torch.einsum("hqk,khd->qhd", weights.softmax(-1).to(v.dtype), v))
        return torch.cat(outputs)

"""How widely a transformer's cells look around: the entropy of attention, differentiable.

The weights themselves are never there: attention is computed by one fused operation. So the first call of
that operation inside a block is intercepted, its queries and keys are taken, and the rest of the network is
not run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

NUMBERS = 1 << 26
"""Attention weights that are computed at a time; at 1 MP one head of FLUX.1 has 20 million."""


class _Reached(Exception):  # ends a forward pass, is no error
    def __init__(self, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
        self.inputs = query, key, mask


class _Interception(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
            raise _Reached(given["query"], given["key"], given.get("attn_mask"))
        return func(*args, **kwargs)


def intercepted(block: nn.Module, run: Callable[[], object]) -> tuple[Tensor, Tensor, Tensor | None]:
    """The queries N,heads,q,d, keys N,heads,k,d and mask of the first attention inside `block`.

    Args:
        block: a block that `run` calls, not under checkpointing.
        run: calls the network; it does not return.
    """
    forward = block.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        with _Interception():
            return forward(*args, **kwargs)

    block.forward = watched
    try:
        run()
    except _Reached as reached:
        return reached.inputs
    finally:
        block.forward = forward
    raise RuntimeError(f"{type(block).__name__} computes no attention by torch's fused operation")


def entropy(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """The entropy of the attention of each query, as a share of the largest one, mean over the heads.

    Args:
        query: N,heads,q,d.
        key: N,heads,k,d.
        mask: what the fused operation takes, N|1,heads|1,1,k: bool, or added to the scores. None: no mask.

    Returns:
        float32 N,q in [0,1]: 0 where a query attends to one key, 1 where it attends to all alike.
    """
    heads, keys = query.shape[1], key.shape[2]

    def of(part: Tensor) -> Tensor:
        with torch.autocast(part.device.type, enabled=False):
            scores = part.float() @ key.float().transpose(2, 3) / math.sqrt(part.shape[3])
            if mask is not None:
                scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
            logarithms = F.log_softmax(scores, dim=3)
            # Where the weight is zero its logarithm is infinite, and their product is to be zero.
            finite = logarithms.masked_fill(logarithms.isinf(), 0)
            return -(logarithms.exp() * finite).sum(dim=3).mean(dim=1) / math.log(keys)

    size = max(1, NUMBERS // (heads * keys * len(query)))
    parts = torch.split(query, size, dim=2)
    if not torch.is_grad_enabled():
        return torch.cat([of(part) for part in parts], dim=1)
    return torch.cat([checkpoint(of, part, use_reentrant=False) for part in parts], dim=1)

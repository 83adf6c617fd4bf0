"""Runs a network whose blocks do not all fit on the device: weights stay on the host and are copied for use.

diffusers and accelerate move whole modules to and fro by hooks. Under gradients that fails: when a block's
gradient is computed, the weights that its forward pass used have left the device already. Here, a block uses
copies. They belong to the graph of that block alone, and under checkpointing they are made again for the
backward pass and freed after it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.func import functional_call


class Streamed(nn.Module):
    """A block whose weights stay where they are, and are copied to `device` each time that it is called."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.device = torch.device("cpu")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the block returns."""
        named = [*self.block.named_parameters(), *self.block.named_buffers()]
        copies = {name: value.to(self.device, non_blocking=True) for name, value in named}
        return functional_call(self.block, copies, args, kwargs)


def stream(net: nn.Module) -> None:
    """Make the blocks of a network streamed: all members of its module lists."""
    for child in net.children():
        if isinstance(child, nn.ModuleList):
            for index, block in enumerate(child):
                child[index] = Streamed(block)


def place(net: nn.Module, device: torch.device | str) -> None:
    """Move a network to a device, but for the weights of streamed blocks, which are copied when used."""
    streamed = [module for module in net.modules() if isinstance(module, Streamed)]
    for block in streamed:
        block.device = torch.device(device)
    kept = {id(tensor) for block in streamed for tensor in (*block.parameters(), *block.buffers())}
    for module in net.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in kept:
                module._parameters[name] = nn.Parameter(parameter.detach().to(device), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and id(buffer) not in kept:
                module._buffers[name] = buffer.to(device)

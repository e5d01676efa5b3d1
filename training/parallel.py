"""A network over several devices: sharded (FSDP2), and its matrices split."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from mvspec.errors import Unsupported
from mvspec.training.network import Network

__all__ = ["parallelize"]

_STYLES: dict[str, type[ParallelStyle]] = {
    "q_proj": ColwiseParallel,
    "k_proj": ColwiseParallel,
    "v_proj": ColwiseParallel,
    "o_proj": RowwiseParallel,
    "gate_proj": ColwiseParallel,
    "up_proj": ColwiseParallel,
    "down_proj": RowwiseParallel,
}


def parallelize(network: Network, mesh: DeviceMesh, compute: torch.dtype | None = None) -> None:
    """Split matrices over the mesh's "tensor_parallel", and shard over its "data_parallel".

    Every decoder layer is a unit of FSDP2; embeddings, norm and head are the root's, so they are
    whole while the loss is computed.

    Args:
        compute: the type in which sharded weights are gathered; gradients are reduced in float32.

    Raises:
        Unsupported: the decoder's layers are none that can be split.
    """
    tensor, data = mesh["tensor_parallel"], mesh["data_parallel"]
    if tensor.size() > 1:
        for layer in network.layers:
            _split(layer, tensor)
    if data.size() > 1:
        options: dict[str, Any] = {"mesh": data}
        if compute is not None:
            options["mp_policy"] = MixedPrecisionPolicy(
                param_dtype=compute, reduce_dtype=torch.float32
            )
        for layer in network.layers:
            fully_shard(layer, **options)
        fully_shard(network, **options)


def _split(layer: nn.Module, mesh: DeviceMesh) -> None:
    plan: dict[str, ParallelStyle] = {}
    for name, module in layer.named_modules():
        last = name.rpartition(".")[2]
        if last in _STYLES and isinstance(module, nn.Linear):
            plan[name] = _STYLES[last]()
        elif any(True for _ in module.parameters(recurse=False)) and "norm" not in last:
            raise Unsupported(f"{type(layer).__name__}.{name} cannot be split over devices")
        elif "norm" in last and "attn" in name.rpartition(".")[0]:
            # It would see some of the heads, so its gradient would be a part of the whole.
            raise Unsupported(
                f"{type(layer).__name__} has a norm inside its attention, which cannot be split: "
                "use tensor_parallel_size: 1"
            )
    attention: Any = getattr(layer, "self_attn", None)
    heads = 0 if attention is None else int(attention.config.num_key_value_heads)
    if not plan or heads % mesh.size():
        raise Unsupported(
            f"{type(layer).__name__}: {heads} key-value heads cannot be split over {mesh.size()} "
            "devices: use a tensor_parallel_size that divides them"
        )
    parallelize_module(layer, mesh, plan)

"""A network over several devices: its ranks, sharding (FSDP2), split matrices, gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from mvspec.errors import Unsupported
from mvspec.training.network import LossNetwork


@dataclass(frozen=True)
class DataRanks:
    """Those that read different rows; where matrices are split too, a mesh has more of them.

    Args:
        rank: this one's number among them.
        count: how many they are.
        group: of `torch.distributed`; None is all of it.
    """

    rank: int = 0
    count: int = 1
    group: Any = None

    @classmethod
    def of(cls, trainer: Trainer | None) -> DataRanks:
        """Return those of a trainer; one where there is none."""
        if trainer is None or trainer.world_size == 1:
            return cls()
        strategy: Any = trainer.strategy
        kwargs = getattr(strategy, "distributed_sampler_kwargs", None) or {}
        mesh = getattr(strategy, "_device_mesh", None)
        return cls(
            int(kwargs.get("rank", trainer.global_rank)),
            int(kwargs.get("num_replicas", trainer.world_size)),
            None if mesh is None else mesh["data_parallel"].get_group(),
        )

    def summed(self, values: Sequence[float | Tensor], device: torch.device) -> list[float]:
        """Return numbers summed over the ranks, in one exchange; they meet the host here.

        >>> DataRanks().summed([1, torch.tensor(2.5)], torch.device("cpu"))
        [1.0, 2.5]
        """
        total = torch.stack(
            [torch.as_tensor(value, dtype=torch.float64, device=device) for value in values]
        )
        if self.count > 1:
            torch.distributed.all_reduce(total, group=self.group)
        found: list[float] = total.tolist()
        return found


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of all gradients together, the same on every rank: float32 [].

    >>> gradient_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
    tensor(5.)
    """
    # Tensors of one mesh at a time: those of different ones cannot be stacked.
    by_mesh: dict[Any, list[Tensor]] = {}
    for each in gradients:
        by_mesh.setdefault(each.device_mesh if isinstance(each, DTensor) else None, []).append(each)
    norms: list[Tensor] = []
    for some in by_mesh.values():
        norm = torch.nn.utils.get_total_norm(some)
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return torch.stack([norm.float() for norm in norms]).norm() if norms else torch.zeros(())


def scale_gradients(gradients: Sequence[Tensor], factor: float) -> None:
    """Multiply gradients by a number, in place."""
    parts = [each.to_local() if isinstance(each, DTensor) else each for each in gradients]
    if parts:
        torch._foreach_mul_(parts, factor)


_STYLES: dict[str, type[ParallelStyle]] = {
    "q_proj": ColwiseParallel,
    "k_proj": ColwiseParallel,
    "v_proj": ColwiseParallel,
    "o_proj": RowwiseParallel,
    "gate_proj": ColwiseParallel,
    "up_proj": ColwiseParallel,
    "down_proj": RowwiseParallel,
}


def parallelize(network: LossNetwork, mesh: DeviceMesh, compute: torch.dtype | None = None) -> None:
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

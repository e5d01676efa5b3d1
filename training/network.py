"""A transformers model and its loss as one module: tensors of a batch to a sum over tokens."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from mvspec.compiler.models import check_model, logits_of, reading, small_fork
from mvspec.errors import Unsupported
from mvspec.training.batch import BatchTensors
from mvspec.training.loss import head_loss

FLEX = "mvspec_flex"
"""The name of `attend` in transformers' attention interface.

Transformers' own "flex_attention" repeats keys for each query head where their number is no power
of two, as Qwen2.5's is not, and keeps the log of every sum.
"""

ATTENTIONS = {"flex": FLEX, "sdpa": "sdpa", "eager": "eager"}
"""How a model may attend, and what transformers calls it."""

_compiled: Any = torch.compile(flex_attention)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask,
    scaling: float | None = None,
    dropout: float = 0.0,
    kernel_options: Mapping[str, Any] | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attend under a block mask; transformers calls it.

    Args:
        query: [batch, heads, n, dim]; key, value: [batch, key-value heads, n, dim].

    Returns:
        [batch, n, heads, dim].
    """
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        # Rotated queries and keys are float32 then, values are not; FlexAttention wants one type.
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    # Inside a compiled layer it is a part of that layer's graph.
    flex = flex_attention if torch.compiler.is_compiling() else _compiled
    out: Tensor = flex(
        query,
        key,
        value,
        block_mask=attention_mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=kernel_options,
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(FLEX, attend)
AttentionMaskInterface.register(FLEX, lambda *args, **kwargs: None)


class LossNetwork(nn.Module):
    """The module that is sharded and compiled: it sees ids, positions, a mask, parents and targets.

    Args:
        model: a causal language model of transformers, or peft's around one.
        loss: as `head_loss` takes it.
        chunk: tokens whose logits exist at once.
        kernel_options: for FlexAttention, such as {"BACKEND": "FLASH"}.

    Raises:
        Unsupported: the layout's mask or the loss would not be the model's.
    """

    def __init__(
        self,
        model: Any,
        *,
        loss: str = "chunked",
        chunk: int | None = None,
        kernel_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_model(model)
        self.model = model
        self.loss = loss
        self.chunk = chunk
        self.kernel_options = dict(kernel_options or {})
        self._check_loss()

    def _check_loss(self) -> None:
        """See that what the loss is made of is the model's: the head's logits, and its routers'."""
        base = self.base
        none = torch.zeros(0, dtype=torch.long)
        with reading(base):
            fork = small_fork(base)
            whole = logits_of(base, **fork)
            ids, positions, mask = fork.values()
            hidden, routed = self.hidden(BatchTensors(ids, positions, mask, none, none))
            own = base.get_output_embeddings()(hidden)
        if self.balanced:
            self._balance(routed)
        if own.shape != whole.shape or float((own - whole).norm()) > 0.02 * float(whole.norm()):
            raise Unsupported(
                f"model type {base.config.model_type!r}: its logits are changed after the head, "
                "so the loss would silently not be the model's"
            )

    def _apply(self, fn: Any, recurse: bool = True) -> LossNetwork:
        """Move or convert the weights; buffers that are float32 stay so.

        The frequencies of rotary embeddings are such buffers: rounded to bfloat16, which
        `Trainer(precision="bf16-true")` asks for, positions would silently be others than those
        of the engines.
        """
        kept = [
            (module, name, buffer)
            for module in self.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if buffer.dtype == torch.float32
        ]
        convert: Any = super()._apply
        convert(fn, recurse)
        for module, name, buffer in kept:
            found = getattr(module, name)
            if found.dtype != buffer.dtype and not buffer.is_meta:
                setattr(module, name, buffer.to(found.device))
        return self

    @property
    def base(self) -> Any:
        """The transformers model, without peft's shell."""
        found = self.model
        return found.get_base_model() if hasattr(found, "get_base_model") else found

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers."""
        decoder = self.base.get_decoder()
        count = self.base.config.get_text_config().num_hidden_layers
        found = (each for each in decoder.modules() if isinstance(each, nn.ModuleList))
        return next(each for each in found if len(each) == count)

    @property
    def flex(self) -> bool:
        """Whether the model attends through FlexAttention."""
        return bool(self.base.config._attn_implementation == FLEX)

    @property
    def balanced(self) -> bool:
        """Whether the config asks for the loss of routers, which spreads tokens over experts."""
        return bool(getattr(self.base.config.get_text_config(), "output_router_logits", False))

    def hidden(self, inputs: BatchTensors) -> tuple[Tensor, Any]:
        """Return the last hidden states: [batch, n, width], and the logits of routers."""
        options: dict[str, Any] = {}
        if self.kernel_options:
            options["kernel_options"] = self.kernel_options
        if self.balanced:
            options["output_router_logits"] = True
        out = self.base.get_decoder()(
            input_ids=inputs.ids,
            position_ids=inputs.positions,
            attention_mask=inputs.mask,
            use_cache=False,
            **options,
        )
        return out.last_hidden_state, getattr(out, "router_logits", None)

    def forward(self, inputs: BatchTensors) -> Tensor:
        """Return the summed loss of the tokens with loss, from the logits at their parents.

        That of routers is a mean over a batch's tokens; it counts once for each with loss.
        """
        hidden, routed = self.hidden(inputs)
        hidden = hidden.flatten(0, 1).index_select(0, inputs.parents)
        head = self.base.get_output_embeddings()
        loss = head_loss(head, hidden, inputs.targets, chunk=self.chunk, how=self.loss)
        if not self.balanced:
            return loss
        balance, share = self._balance(routed)
        base = self.base
        lost: Tensor = balance(routed, base.num_experts, base.num_experts_per_tok, inputs.real)
        return loss + share * lost.to(loss) * len(inputs.targets)

    def _balance(self, routed: Any) -> tuple[Any, float]:
        """Return the model's function of its routers' logits, and the share of its loss.

        Raises:
            Unsupported: transformers has none of Mixtral's kind for it.
        """
        base = self.base
        function = getattr(sys.modules[type(base).__module__], "load_balancing_loss_func", None)
        share = getattr(base, "router_aux_loss_coef", getattr(base, "aux_loss_coef", None))
        mixtrals = function is not None and len(signature(function).parameters) == 4
        if not mixtrals or share is None or not routed:
            raise Unsupported(
                f"model type {base.config.model_type!r}: its router's loss is not of Mixtral's "
                "kind: set output_router_logits to false in the config"
            )
        return function, float(share)

    def compile_layers(self) -> None:
        """Compile the decoder's layers: all share one graph, which is made quickly.

        Their `forward`s, so that what gathers sharded weights stays outside.
        """
        for layer in self.layers:
            layer.forward = torch.compile(layer.forward)

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Give the layers back the `forward` of their classes for a while."""
        kept = [vars(layer).pop("forward", None) for layer in self.layers]
        try:
            yield
        finally:
            for layer, forward in zip(self.layers, kept, strict=True):
                if forward is not None:
                    layer.forward = forward

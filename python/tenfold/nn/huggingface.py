"""Mixture-of-experts blocks of Hugging Face transformers on tenfold's experts.

from tenfold.nn.huggingface import register_experts

register_experts()
model = AutoModelForCausalLM.from_pretrained(..., experts_implementation="tenfold")
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tenfold.ops import moe

ACTIVATIONS: dict[str, moe.Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""From `config.hidden_act` to expert_ffn's name of it."""


def register_experts(name: str = "tenfold") -> None:
    """Make expert_ffn an `experts_implementation` of transformers (5.0 or newer) under this name.

    ImportError where transformers is not installed or has no such interface.
    """
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(name, experts_forward)


def experts_forward(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Run the experts of a transformers module: hidden_states (T, D), top_k_index and top_k_weights (T, k).

    `module` holds gate_up_proj (or up_proj) and down_proj, biases where `has_bias`, and num_experts, as
    transformers' `use_experts_implementation` describes them. Values and gradients are those of its own
    implementations, summed in another order. NotImplementedError for what expert_ffn has no form of: gate and
    up interleaved, a norm after each expert, a gating of the model's own, expert parallelism.
    """
    _refuse_other_forms(module)
    gated = getattr(module, "has_gate", True)
    name = "gate_up_proj" if gated else "up_proj"
    w_in, w_out = getattr(module, name), module.down_proj
    if not getattr(module, "is_transposed", False):  # (E, out, in): the same memory seen as (E, in, out)
        w_in, w_out = w_in.transpose(1, 2), w_out.transpose(1, 2)
    b_in, b_out = None, None
    if getattr(module, "has_bias", False):
        b_in, b_out = getattr(module, f"{name}_bias"), module.down_proj_bias
    routing = moe.routing_from_ids(top_k_index, top_k_weights, module.num_experts)
    activation = ACTIVATIONS[module.config.hidden_act]
    out: Tensor = moe.expert_ffn(
        hidden_states, routing, w_in, w_out, activation, gated=gated, b_in=b_in, b_out=b_out
    )
    return out.to(hidden_states.dtype)


def _refuse_other_forms(module: Any) -> None:
    from transformers.integrations.moe import _default_apply_gate

    own_gate = getattr(type(module), "_apply_gate", _default_apply_gate) is not _default_apply_gate
    activation = module.config.hidden_act
    for wrong, form in (
        (getattr(module, "has_gate", True) and own_gate, "a gating of the model's own"),
        (not getattr(module, "is_concatenated", True), "gate and up interleaved"),
        (getattr(module, "has_post_expert_norm", False), "a norm after each expert"),
        (getattr(module, "_is_expert_parallel", False), "expert parallelism"),
        (activation not in ACTIVATIONS, f"the activation {activation!r}"),
    ):
        if wrong:
            raise NotImplementedError(
                f"{type(module).__name__}: tenfold's experts have no form of {form}; "
                "use another experts_implementation"
            )

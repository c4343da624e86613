"""A small Mixtral block with random weights on tenfold's experts: outputs and gradients as with its own."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers.integrations.moe", reason="transformers is not installed")

from transformers import MixtralConfig  # noqa: E402
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock  # noqa: E402

from tenfold.nn.huggingface import register_experts  # noqa: E402


@pytest.fixture
def block():
    register_experts()
    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=48,
        intermediate_size=80,
        num_local_experts=6,
        num_experts_per_tok=2,
        num_attention_heads=4,
        experts_implementation="eager",
    )
    block = MixtralSparseMoeBlock(config)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return block


def run(block, implementation, x):
    block.experts.config._experts_implementation = implementation
    x = x.clone().requires_grad_()
    out = block(x)
    out = out[0] if isinstance(out, tuple) else out
    leaves = [x, *block.parameters()]
    return [out, *torch.autograd.grad(out.sin().sum(), leaves)]


@pytest.mark.parametrize("other", ["eager", "grouped_mm"])
def test_outputs_and_gradients_are_those_of_transformers(block, other):
    x = torch.randn(3, 40, 48)
    for mine, want in zip(run(block, "tenfold", x), run(block, other, x), strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-4, atol=1e-5)


def test_bfloat16(block):
    x = torch.randn(3, 40, 48).bfloat16()
    block.bfloat16()
    mine, want = run(block, "tenfold", x)[0], run(block, "eager", x)[0]
    torch.testing.assert_close(mine.float(), want.float(), rtol=0.05, atol=0.05)


def test_what_has_no_form_here_is_refused(block):
    for name, value, said in (
        ("is_concatenated", False, "gate and up interleaved"),
        ("has_post_expert_norm", True, "a norm after each expert"),
        ("_is_expert_parallel", True, "expert parallelism"),
    ):
        before = getattr(block.experts, name)
        setattr(block.experts, name, value)
        with pytest.raises(NotImplementedError, match=said):
            run(block, "tenfold", torch.randn(1, 4, 48))
        setattr(block.experts, name, before)
    block.experts.config.hidden_act = "quick_gelu"
    with pytest.raises(NotImplementedError, match="the activation 'quick_gelu'"):
        run(block, "tenfold", torch.randn(1, 4, 48))

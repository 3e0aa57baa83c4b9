"""Phi-3-small's block-sparse pattern against a mask made from the formula; the sparse path against dense attention."""

from __future__ import annotations

import time

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from phial.errors import ArgumentError
from phial.model.attention import plain_attention
from phial.model.masks import KeyMask
from phial.model.places import token_places
from phial.model.sparse import BlockPattern, block_sparse_attention

SMALL = BlockPattern(n_head=8, block=4, local_blocks=3, stride=8)
PATTERNS = [
    SMALL,
    BlockPattern(n_head=4, block=5, local_blocks=1, stride=8),  # fewer heads than phases: the step is 2
    BlockPattern(n_head=6, block=2, local_blocks=4, stride=3),
    BlockPattern(n_head=2, block=3, local_blocks=2, stride=1),  # every block: dense
]


def brute_force(pattern: BlockPattern, n_tokens: int) -> torch.Tensor:
    """The mask, entry by entry, from the formula of the published configuration."""
    step = max(1, pattern.stride // pattern.n_head)
    mask = torch.zeros(pattern.n_head, n_tokens, n_tokens, dtype=torch.bool)
    for h in range(pattern.n_head):
        for q in range(n_tokens):
            for k in range(q + 1):
                i, j = q // pattern.block, k // pattern.block
                local = i - j < pattern.local_blocks
                mask[h, q, k] = local or (j + h * step + 1) % pattern.stride == 0
    return mask


def random_inputs(pattern: BlockPattern, n_kv: int, n_tokens: int, width: int = 8, rows: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(n_tokens)
    heads = (pattern.n_head, n_kv, n_kv)
    return [torch.randn(rows, n, n_tokens, width, generator=generator).requires_grad_() for n in heads]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_mask_is_that_of_the_formula(pattern: BlockPattern) -> None:
    for n_tokens in (1, 50):
        mask = KeyMask(token_places(torch.zeros(1, n_tokens)), pattern=pattern).dense
        assert torch.equal(mask[0], brute_force(pattern, n_tokens))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_blocks_listed_are_the_blocks_the_mask_touches(pattern: BlockPattern) -> None:
    n_blocks = 24
    mask = brute_force(pattern, n_blocks * pattern.block)
    touched = mask.unflatten(2, (n_blocks, -1)).any(3).unflatten(1, (n_blocks, -1)).any(2)
    for head in range(pattern.n_head):
        for i in range(n_blocks):
            assert pattern.key_blocks(i, head) == touched[head, i].nonzero().flatten().tolist()
    assert pattern.blocks_read(n_blocks * pattern.block)[0] == touched.sum()


def test_any_eight_neighbouring_heads_cover_every_block() -> None:
    pattern = BlockPattern()
    for first in range(pattern.n_head - 7):
        read = set().union(*(pattern.key_blocks(100, head) for head in range(first, first + 8)))
        assert read == set(range(101))


@pytest.mark.parametrize("n_tokens", [1, 3, 4, 5, 40, 131])
@pytest.mark.parametrize(
    ("pattern", "n_kv"),
    [(SMALL, 1), (SMALL, 2), (SMALL, 8), (PATTERNS[2], 3)],  # the last has several heads to a phase, out of order
    ids=str,
)
def test_sparse_attention_equals_dense_attention_under_the_mask(
    pattern: BlockPattern, n_kv: int, n_tokens: int
) -> None:
    inputs = random_inputs(pattern, n_kv, n_tokens)
    sparse = block_sparse_attention(*inputs, pattern, scale=0.4)
    dense = plain_attention(*inputs, brute_force(pattern, n_tokens), scale=0.4)
    torch.testing.assert_close(sparse, dense, atol=2e-6, rtol=0)
    weights = torch.randn(dense.shape, generator=torch.Generator().manual_seed(0))
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), inputs) for y in (sparse, dense)), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


def test_keys_outside_the_pattern_never_act() -> None:
    q, k, v = (x.detach() for x in random_inputs(SMALL, 8, 131))
    unseen = ~brute_force(SMALL, 131)[:, -1]  # by head: what the last query must not see
    other = v.clone()
    other[:, unseen] = torch.nan
    last = block_sparse_attention(q, k, other, SMALL, scale=0.4)[:, :, -1]
    assert torch.equal(last, block_sparse_attention(q, k, v, SMALL, scale=0.4)[:, :, -1])


def test_at_8k_a_third_of_the_blocks_is_read() -> None:
    sparse, dense = BlockPattern().blocks_read(8192)
    assert dense == 32 * 128 * 129 // 2
    assert sparse / dense == pytest.approx(0.33, abs=0.005)


def test_the_sparse_path_does_the_arithmetic_of_the_blocks_read_and_no_more() -> None:
    pattern = BlockPattern(n_head=8, block=8)  # 1024 tokens make the 128 blocks that 8192 make at full size
    inputs = random_inputs(pattern, 2, 1024, rows=1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:  # it counts plain products alone
        block_sparse_attention(*inputs, pattern, scale=1.0)
    pairs = pattern.blocks_read(1024)[0] * pattern.block**2
    assert counted.get_total_flops() == 4 * 8 * pairs  # a product and a sum, for scores and for values, each 8 wide


@pytest.mark.slow
def test_at_8k_the_sparse_path_is_faster_than_dense_attention(capsys: pytest.CaptureFixture[str]) -> None:
    pattern = BlockPattern(n_head=8)
    q, k, v = (x.detach() for x in random_inputs(pattern, 2, 8192, width=128, rows=1))
    seconds = {"sparse": [], "dense": []}
    for _ in range(3):
        start = time.perf_counter()
        block_sparse_attention(q, k, v, pattern, scale=1 / 128)
        middle = time.perf_counter()
        functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1 / 128, enable_gqa=True)
        seconds["sparse"].append(middle - start)
        seconds["dense"].append(time.perf_counter() - middle)
    sparse, dense = (min(times) for times in seconds.values())
    with capsys.disabled():
        print(f"\n8192 tokens, 8 heads of 128: sparse {sparse:.2f} s, dense {dense:.2f} s, ratio {sparse / dense:.2f}")
    assert sparse < 0.8 * dense


@pytest.mark.parametrize("field", ["n_head", "block", "local_blocks", "stride"])
def test_a_pattern_of_nothing_is_refused(field: str) -> None:
    with pytest.raises(ArgumentError, match=f"{field} is 0"):
        BlockPattern(**{field: 0})

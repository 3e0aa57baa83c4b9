"""Attention paths and masks: each path against the one written out, packed documents against each document alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as torchs_flex
from torch import Tensor

from phial.config import PRESETS, ModelConfig
from phial.errors import ArgumentError
from phial.model import attention as paths
from phial.model import blockwise
from phial.model.attention import attend, flexible_attention, plain_attention
from phial.model.masks import KeyMask
from phial.model.phi3_small import PHI_3_SMALL_8K, Phi3Small, Phi3SmallConfig
from phial.model.places import token_places
from phial.model.sparse import BlockPattern
from phial.model.transformer import Transformer

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

PATTERN = BlockPattern(n_head=6, block=4, local_blocks=2, stride=3)
LENGTHS = (30, 1, 90, 64, 15)  # of the documents packed into a row of 200, about an original length of 64
IDS = torch.tensor([i % 2 for i, length in enumerate(LENGTHS) for _ in range(length)])
DOCUMENTS = torch.stack([IDS, IDS.flip(0)])
TRUNK = [(10, 12, 8), (1, 0, 0), (30, 25, 35), (0, 40, 24), (5, 0, 10)]  # of each document: trunk, two branches
BRANCH = torch.tensor([b for sizes in TRUNK for b, n in enumerate(sizes) for _ in range(n)])
BRANCHES = torch.stack([BRANCH, torch.zeros_like(BRANCH)])
TINY: dict[str, Any] = {"n_vocab": 50, "n_embd": 36, "n_layer": 2, "n_head": 6, "n_head_kv": 2, "head_dim": 12}
WINDOW = replace(PRESETS["phi-3-mini-4k"], **TINY, n_ff=40, rope_dim=12, sliding_window=20, n_ctx_train=256)
FACTORS = {"rope_short_factors": (1.0, 1.1, 1.2, 1.3), "rope_long_factors": (1.2, 2.0, 4.0, 7.0)}
LONG_ROPE = replace(WINDOW, sliding_window=None, rope_dim=8, rope_original_context=64, rope_attn_factor=1.2, **FACTORS)
SMALL = Phi3SmallConfig(
    replace(PHI_3_SMALL_8K.shape, **TINY, n_ff=20, rope_dim=12), PATTERN, dummy_ids=(7,), gegelu_limit=2.0
)
CONFIGS = {"window": WINDOW, "longrope": LONG_ROPE, "phi-3-small": SMALL}


def make_model(config: ModelConfig | Phi3SmallConfig, attention: str) -> Transformer | Phi3Small:
    """Always the same weights, large enough for masks and rotations to matter."""
    torch.manual_seed(0)
    made = Phi3Small if isinstance(config, Phi3SmallConfig) else Transformer
    model = made(config, attention=attention)  # type: ignore[arg-type]
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 8
    return model


def random_tokens(*shape: int) -> Tensor:
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(1))


def masks() -> Iterator[tuple[str, KeyMask]]:
    rows = token_places(torch.zeros(2, 200))
    packed = token_places(DOCUMENTS, documents=DOCUMENTS)
    yield "causal", KeyMask(rows)
    yield "window", KeyMask(rows, window=20)
    yield "pattern", KeyMask(rows, pattern=PATTERN)
    yield "documents", KeyMask(packed)
    yield "documents and window", KeyMask(packed, window=20)
    yield "documents and pattern", KeyMask(packed, pattern=PATTERN)
    branched = token_places(DOCUMENTS, documents=DOCUMENTS, branches=BRANCHES)
    yield "branches", KeyMask(branched)
    yield "branches and window", KeyMask(branched, window=20)
    yield "both ways", KeyMask(rows, causal=False)
    yield "documents both ways", KeyMask(packed, causal=False)


MASKS = dict(masks())


def inputs(width: int = 12, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, n, 200, width, generator=generator) for n in (6, 2, 2)]


@pytest.mark.parametrize("name", MASKS)
def test_the_mask_is_that_of_the_definition(name: str) -> None:
    mask = MASKS[name]
    bounds = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    head, branched = 4, mask.places.branches is not None
    spread = [number for number, sizes in enumerate(TRUNK) for _ in range(sum(sizes))]
    branch = BRANCH.tolist() if branched else [0] * 200
    # how far a token of a second branch is from its trunk: as if the first one were not there
    jump = [TRUNK[n][1] * (b == 2) * branched for n, b in zip(spread, BRANCH.tolist(), strict=True)]
    seen = mask.dense.expand(2, 6, 200, 200)[0, head].tolist()
    for begin, end in pairwise(bounds if mask.places.documents is not None else [0, 200]):
        for q in range(begin, end):
            for k in range(200):
                expected = begin <= k < (q + 1 if mask.causal else end)
                expected = expected and branch[k] in (0, branch[q])
                expected = expected and (mask.window is None or k - jump[k] > q - jump[q] - mask.window)
                if mask.pattern is not None:
                    i, j = (q - begin) // 4, (k - begin) // 4  # blocks begin with the document
                    expected = expected and (i - j < 2 or (j + head + 1) % 3 == 0)
                assert seen[q][k] == expected, (q, k)


def test_rows_keep_their_own_documents() -> None:
    seen = MASKS["documents"].dense
    assert seen.shape == (2, 1, 200, 200)
    assert torch.equal(seen[0, 0], seen[1, 0].flip(0, 1).T)  # the second row is the first one backwards


@pytest.mark.parametrize(("n", "causal"), [(8, True), (9, False)])
def test_a_window_or_a_pattern_that_cuts_nothing_is_no_mask(n: int, causal: bool) -> None:
    places = token_places(torch.zeros(1, n))
    for mask in (KeyMask(places, window=8), KeyMask(places, pattern=PATTERN)):
        assert mask.is_causal is causal
    assert not KeyMask(token_places(DOCUMENTS[:, :8], documents=DOCUMENTS[:, :8])).is_causal


@torch.no_grad()
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("path", ["sdpa", "flex", "blockwise", "auto"])
def test_every_path_equals_the_one_written_out(name: str, path: str) -> None:
    q, k, v = inputs()
    expected = plain_attention(q, k, v, MASKS[name].dense, 0.5)
    assert expected.std() > 0.1
    torch.testing.assert_close(attend(path, q, k, v, MASKS[name], 0.5), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(attend("plain", q, k, v, MASKS[name], 0.5), expected, atol=0, rtol=0)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("name", MASKS)
def test_gradients_of_a_path_for_training_equal_those_of_the_one_written_out(
    name: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockwise, "KEPT", 200 if kept else 199)
    found = {}
    for path in ("auto", "plain"):  # on a CPU "auto" is blockwise, but for patterns
        leaves = [x.requires_grad_() for x in inputs()]
        out = attend(path, *leaves, MASKS[name], 0.5)
        by_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
        found[path] = torch.autograd.grad(out, leaves, by_out)
    for ours, theirs in zip(found["auto"], found["plain"], strict=True):
        assert theirs.std() > 0.1
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_strips_hold_no_key_of_documents_that_ended_before_them() -> None:
    # Documents begin at 30, 31, 121, 185 in the first row and at 15, 79, 169, 170 in the second.
    assert [strip.keys.start for strip in MASKS["documents"].strips] == [0, 15, 79, 170]
    assert [strip.keys.start for strip in MASKS["window"].strips] == [0, 45, 109, 173]
    both = MASKS["documents both ways"].strips  # nor of any that begin after them
    assert [(strip.keys.start, strip.keys.stop) for strip in both] == [(0, 121), (15, 185), (79, 200), (170, 200)]


@torch.no_grad()
@pytest.mark.parametrize("width", [8, 96])
def test_flex_pads_heads_to_widths_its_kernels_know_and_takes_nothing_from_it(width: int, monkeypatch: Any) -> None:
    q, k, v = inputs(width)
    seen = []

    def spy(q: Tensor, *rest: Any, **options: Any) -> Tensor:
        seen.append(q.shape[-1])
        return torchs_flex.flex_attention(q, *rest, **options)

    monkeypatch.setattr(paths, "flex_attention", spy)
    mask = MASKS["documents and window"]
    out = attend("flex", q, k, v, mask, width**-0.5)
    torch.testing.assert_close(out, plain_attention(q, k, v, mask.dense, width**-0.5), atol=1e-5, rtol=0)
    assert seen == [{8: 16, 96: 128}[width]]


@pytest.mark.parametrize("name", ["window", "documents and pattern"])
def test_gradients_of_flex_equal_those_of_the_path_written_out(name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(torchs_flex, "_validate_device", lambda *_: None)  # which refuses them on a CPU
    leaves = [x.requires_grad_() for x in inputs()]
    weights = torch.randn(2, 6, 200, 12, generator=torch.Generator().manual_seed(5))
    flex = flexible_attention(*leaves, MASKS[name].blocks, 0.5)
    plain = plain_attention(*leaves, MASKS[name].dense, 0.5)
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), leaves) for y in (flex, plain)), strict=True):
        assert b.abs().max() > 0.1
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_auto_is_flex_for_masks_on_a_gpu_and_blockwise_to_train_on_a_cpu_and_else_the_fused_kernels(
    monkeypatch: Any,
) -> None:
    for name, path in (("flexible", "flex"), ("fused", "sdpa"), ("blockwise", "blockwise")):
        monkeypatch.setattr(paths, f"{name}_attention", lambda *_, path=path: path)
    gpu, short, cpu = (
        SimpleNamespace(is_cuda=kind == "cuda", device=torch.device(kind), shape=(2, 6, n, 12), requires_grad=True)
        for kind, n in (("cuda", 200), ("cuda", 100), ("cpu", 200))
    )
    chosen = [attend("auto", q, q, q, MASKS[m], 1.0) for q, m in ((gpu, "window"), (gpu, "causal"), (cpu, "window"))]
    assert chosen == ["flex", "sdpa", "blockwise"]
    with torch.no_grad():
        assert attend("auto", cpu, cpu, cpu, MASKS["window"], 1.0) == "sdpa"
    assert attend("auto", short, short, short, MASKS["window"], 1.0) == "sdpa"


def test_flex_on_a_cpu_refuses_to_train() -> None:
    with pytest.raises(ArgumentError, match="no gradients on a CPU"):
        make_model(WINDOW, "flex")(random_tokens(1, 40))


@torch.no_grad()
@pytest.mark.parametrize("attention", ["auto", "flex", "plain"])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_documents_give_what_each_gives_alone(name: str, attention: str) -> None:
    model, alone = make_model(CONFIGS[name], attention), make_model(CONFIGS[name], "plain")
    tokens = random_tokens(2, 200)
    packed = model(tokens, documents=DOCUMENTS)
    assert packed[packed.isfinite()].std() > 0.1
    for row, lengths in enumerate((LENGTHS, LENGTHS[::-1])):
        for document, logits in zip(tokens[row].split(lengths), packed[row].split(lengths), strict=True):
            torch.testing.assert_close(logits, alone(document[None])[0], atol=1e-5, rtol=0)
    assert (model(tokens)[0, -15:] - packed[0, -15:]).nan_to_num().abs().max() > 0.01


def test_gradients_of_packed_documents_are_those_of_each_alone() -> None:
    model, tokens = make_model(LONG_ROPE, "auto"), random_tokens(1, 200)
    model(tokens, documents=DOCUMENTS[:1]).square().sum().backward()
    packed = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    for document in tokens[0].split(LENGTHS):
        model(document[None]).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "flex", "blockwise", "plain"])
@torch.no_grad()
def test_each_branch_gives_what_it_gives_alone_after_its_trunk(attention: str) -> None:
    model, alone = make_model(WINDOW, attention), make_model(WINDOW, "plain")
    tokens = random_tokens(2, 200)
    packed = model(tokens, documents=DOCUMENTS, branches=BRANCHES)[0]
    for sizes, document, logits in zip(TRUNK, tokens[0].split(LENGTHS), packed.split(LENGTHS), strict=True):
        trunk, *branches = document.split(sizes)
        parts = logits.split(sizes)
        for branch, found in zip(branches, parts[1:], strict=True):
            if len(branch):
                expected = alone(torch.cat([trunk, branch])[None])[0]
                torch.testing.assert_close(torch.cat([parts[0], found]), expected, atol=1e-5, rtol=0)


def test_gradients_of_branches_are_those_of_each_alone() -> None:
    model, tokens = make_model(WINDOW, "auto"), random_tokens(1, 200)
    out = model(tokens, documents=DOCUMENTS[:1], branches=BRANCHES[:1])
    out[0, BRANCH > 0].square().sum().backward()
    packed = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    for sizes, document in zip(TRUNK, tokens[0].split(LENGTHS), strict=True):
        trunk, *branches = document.split(sizes)
        for branch in branches:
            if len(branch):
                model(torch.cat([trunk, branch])[None])[0, len(trunk) :].square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("branches", "documents", "named"),
    [
        (torch.zeros(2, 6, dtype=torch.long), None, "without documents"),
        (torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 6, dtype=torch.long), r"\(2, 5\)"),
        (torch.tensor([[0, 1, 1, 2, 2, 1]] * 2), torch.zeros(2, 6, dtype=torch.long), "not in order"),
    ],
)
def test_branches_that_do_not_fit_are_refused(branches: Tensor, documents: Tensor | None, named: str) -> None:
    with pytest.raises(ArgumentError, match=named):
        token_places(torch.zeros(2, 6, dtype=torch.long), documents=documents, branches=branches)


@pytest.mark.parametrize(
    ("documents", "named"),
    [
        (torch.zeros(2, 5, dtype=torch.long), r"\(2, 5\)"),
        (torch.zeros(2, 6), "torch.float32"),
        (torch.zeros(2, 6, dtype=torch.long, device="meta"), "meta"),
    ],
)
def test_documents_that_do_not_fit_the_tokens_are_refused(documents: Tensor, named: str) -> None:
    with pytest.raises(ArgumentError, match=named):
        token_places(torch.zeros(2, 6, dtype=torch.long), documents=documents)


def test_lengths_beside_documents_are_refused() -> None:
    with pytest.raises(ArgumentError, match="both given"):
        token_places(DOCUMENTS, [200, 200], DOCUMENTS)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # the compilers take most of it
@torch.no_grad()
def test_compiled_flex_equals_the_path_written_out_and_is_compiled_once(monkeypatch: Any) -> None:
    """On a CPU, where PyTorch compiles it to C++: the mask functions are those a GPU would compile."""
    compiled = torch.compile(torchs_flex.flex_attention)
    monkeypatch.setattr(paths, "flex_attention", compiled)
    q, k, v = inputs(96)
    for other in (DOCUMENTS, DOCUMENTS.flip(0), torch.arange(400).reshape(2, 200) // 37):
        mask = KeyMask(token_places(other, documents=other), window=20)
        out = attend("flex", q, k, v, mask, 0.1)
        torch.testing.assert_close(out, plain_attention(q, k, v, mask.dense, 0.1), atol=1e-5, rtol=0)
        monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", False)
    out = attend("flex", q, k, v, MASKS["pattern"], 0.1)
    torch.testing.assert_close(out, plain_attention(q, k, v, MASKS["pattern"].dense, 0.1), atol=1e-5, rtol=0)
    create = torch.compile(torchs_flex.create_block_mask)
    monkeypatch.setattr("phial.model.masks.create_block_mask", create)
    for name in ("documents and window", "pattern"):
        again = dict(masks())[name].blocks
        assert torch.equal(again.to_dense(), MASKS[name].blocks.to_dense())

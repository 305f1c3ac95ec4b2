import pytest
import torch
from torch import nn

from holdfast.errors import UserError
from holdfast.generative import Attention, UNet, cross_attention, watch_attention
from holdfast.generative.attention import group_norm
from holdfast.generative.unet import sinusoids


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("side", [8, 9, 14])
@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 2)])
def test_it_gives_maps_like_the_images_whatever_their_side(side, multipliers):
    net = UNet(channels=3, width=8, multipliers=multipliers, self_attention=(0,), heads=2)
    out = net(some(2, 3, side, side), torch.tensor([1, 500]))
    assert out.shape == (2, 3, side, side)
    assert (out == 0).all(), "the last layer begins at nothing"


def test_every_weight_takes_part(by_text):
    net = by_text.train()
    net(
        some(4, 3, 8, 8), torch.tensor([1, 2, 3, 20]), net.context(["red disc", "blue star", "", "star"])
    ).sum().backward()
    unused = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


def test_no_image_sees_another_of_its_batch(by_text):
    x, t, context = some(3, 3, 8, 8), torch.tensor([1, 9, 20]), by_text.context(["red disc", "blue star", ""])
    with torch.no_grad():
        whole = by_text(x, t, context)
        for i in range(3):
            torch.testing.assert_close(by_text(x[i : i + 1], t[i : i + 1], context[i : i + 1])[0], whole[i])


def test_time_and_context_matter(by_text):
    x, red, blue = some(1, 3, 8, 8), by_text.context(["red disc"]), by_text.context(["blue disc"])
    with torch.no_grad():
        base = by_text(x, torch.tensor([3]), red)
        assert not torch.allclose(base, by_text(x, torch.tensor([15]), red), atol=1e-4)
        assert not torch.allclose(base, by_text(x, torch.tensor([3]), blue), atol=1e-5)


def test_neighbouring_times_look_alike_and_distant_ones_do_not():
    emb = sinusoids(torch.tensor([100, 101, 600]))
    emb = emb / emb.norm(dim=1, keepdim=True)
    near, far = emb[0] @ emb[1], emb[0] @ emb[2]
    assert near > 0.95 > far
    assert len(sinusoids(torch.arange(1001)).unique(dim=0)) == 1001


@pytest.mark.parametrize("channels", [1, 3, 6, 8, 12, 20])
def test_groups_divide_the_channels(channels):
    norm = group_norm(channels)
    assert channels % norm.num_groups == 0
    assert norm.num_groups <= 8


def test_attention_is_that_of_pytorch():
    ours = Attention(8, heads=2, context=6)
    theirs = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, bias=True, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_bias.zero_()
        theirs.q_proj_weight.copy_(ours.query.weight)
        theirs.k_proj_weight.copy_(ours.key.weight)
        theirs.v_proj_weight.copy_(ours.value.weight)
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    x, tokens = some(3, 8, 4, 5), some(3, 7, 6, seed=1)
    pixels = ours.norm(x).flatten(2).transpose(1, 2)
    mixed, weights = theirs(pixels, tokens, tokens, average_attn_weights=False)
    expected = x + mixed.transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(ours(x, tokens), expected)
    with watch_attention(ours) as seen:  # the layer is its own model, under no name
        torch.testing.assert_close(ours(x, tokens), expected)
    torch.testing.assert_close(seen[0].probabilities, weights)


def test_watched_attention_is_the_same_and_can_be_learnt_from(by_text):
    x, t, context = some(2, 3, 8, 8), torch.tensor([3, 9]), by_text.context(["red disc", "blue star"])
    plain = by_text(x, t, context)
    with watch_attention(by_text) as seen:
        watched = by_text(x, t, context)
    torch.testing.assert_close(watched, plain, atol=1e-5, rtol=1e-4)
    assert {w.name for w in seen} == set(cross_attention(by_text))
    assert len(seen) == 4  # both resolutions, down and up
    for w in seen:
        torch.testing.assert_close(w.probabilities.sum(-1), torch.ones(w.probabilities.shape[:-1]))
    place = by_text.text.tokenizer.places("red disc", "disc")
    torch.cat([w.probabilities[..., place].flatten() for w in seen]).norm().backward()
    first = next(iter(cross_attention(by_text).values()))
    assert first.key.weight.grad.any()
    by_text(x, t, context)
    assert len(seen) == 4, "after the block nobody watches"


def test_two_may_watch(by_text):
    x, t, context = some(1, 3, 8, 8), torch.tensor([3]), by_text.context(["red disc"])
    with watch_attention(by_text) as outer:
        with watch_attention(by_text) as inner:
            by_text(x, t, context)
        by_text(x, t, context)
    assert (len(inner), len(outer)) == (4, 8)


def test_explicit_attention_is_the_same():
    fused = Attention(8, heads=2)
    explicit = Attention(8, heads=2, explicit=True)
    explicit.load_state_dict(fused.state_dict())
    x = some(2, 8, 6, 6)
    torch.testing.assert_close(fused(x), explicit(x))


def test_mistakes_are_said(by_text, by_class):
    for how, said in (
        ({"multipliers": ()}, "at least one resolution"),
        ({"classes": 3, "context": 8}, "not both"),
        ({"self_attention": (2,)}, "attention at resolution 2, but there are 2"),
        ({"width": 6, "self_attention": (0,)}, "4 heads do not divide 6"),
    ):
        with pytest.raises(UserError, match=said):
            UNet(channels=1, **how)
    with pytest.raises(UserError, match="needs the tokens"):
        by_text.denoiser(some(1, 3, 8, 8), torch.tensor([1]))
    with pytest.raises(UserError, match="needs a label"):
        by_class(some(1, 1, 8, 8), torch.tensor([1]))

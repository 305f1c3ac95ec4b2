"""Parts from other libraries, by stand-ins that do what those do."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from holdfast.errors import UserError
from holdfast.generative import cross_attention, plugged, sample, watch_attention
from holdfast.run import Run

WORDS = ["<start>", "<end>", "red", "disc", "di", "sk", "on", "blue"]


class Tokenizer:
    """In the manner of CLIP's: padded with the end, and rare words in pieces."""

    model_max_length = 7

    def __call__(self, texts, *, padding, max_length, truncation, return_tensors):
        assert (padding, max_length, truncation, return_tensors) == ("max_length", 7, True, "pt")
        rows = []
        for text in texts:
            pieces = [p for word in text.split() for p in (["di", "sk"] if word == "disk" else [word])]
            row = [0, *(WORDS.index(p) for p in pieces), 1]
            rows.append((row + [1] * max_length)[:max_length])
        return SimpleNamespace(input_ids=torch.tensor(rows))


class TextEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.mix = nn.Embedding(len(WORDS), 12), nn.Linear(12, 12)

    def get_input_embeddings(self):
        return self.table

    def forward(self, ids):
        rows = self.table(ids)
        return SimpleNamespace(last_hidden_state=self.mix(rows) + rows.mean(1, keepdim=True))


class CrossAttention(nn.Module):
    """With the names and the arithmetic of diffusers' Attention."""

    def __init__(self, channels, context, heads):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context, channels, bias=False)
        self.to_v = nn.Linear(context, channels, bias=False)
        self.seen = None

    def forward(self, x, context):
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        self.seen = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        return (self.seen @ v).transpose(1, 2).flatten(2)


class UNet(nn.Module):
    def __init__(self, channels=4, classes=0):
        super().__init__()
        self.config = SimpleNamespace(in_channels=channels, sample_size=8)
        self.first, self.last = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)
        self.attn2 = CrossAttention(8, 12, heads=2)
        self.label = nn.Embedding(classes + 1, 8)
        self.times = []

    def forward(self, x, t, encoder_hidden_states=None, class_labels=None):
        self.times.append(t)
        h = self.first(x) + t.view(-1, 1, 1, 1) / 100
        if class_labels is not None:
            h = h + self.label(class_labels)[:, :, None, None]
        if encoder_hidden_states is not None:
            attended = self.attn2(h.flatten(2).transpose(1, 2), encoder_hidden_states)
            h = h + attended.transpose(1, 2).reshape(h.shape)
        return SimpleNamespace(sample=self.last(h))


class Vae(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(scaling_factor=0.25, block_out_channels=(8, 8), in_channels=3)
        self.down, self.up = nn.Conv2d(3, 4, 2, stride=2), nn.ConvTranspose2d(4, 3, 2, stride=2)

    def encode(self, x):
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=self.down(x)))

    def decode(self, z):
        return SimpleNamespace(sample=self.up(z))


def scheduler(prediction_type="epsilon", steps=30):
    betas = torch.linspace(1e-3, 0.3, steps)
    return SimpleNamespace(
        alphas_cumprod=(1 - betas).cumprod(0), config=SimpleNamespace(prediction_type=prediction_type)
    )


@pytest.fixture
def stable():
    torch.default_generator.manual_seed(0)
    return plugged(UNet(), scheduler(), tokenizer=Tokenizer(), text_encoder=TextEncoder(), vae=Vae())


def test_it_makes_images_of_texts(stable):
    assert stable.image_shape == (3, 16, 16)
    assert stable.latent_shape == (4, 8, 8)
    assert not stable.clips
    x = sample(stable, of=["red disc", "disk on blue"], guidance=2.0, sampler="ddim(steps=5)", run=Run())
    assert x.shape == (2, 3, 16, 16)
    assert 0 <= x.min() <= x.max() <= 1


def test_times_are_counted_from_0_there(stable):
    with torch.no_grad():
        stable(torch.randn(2, 4, 8, 8), torch.tensor([1, 30]), stable.context(["red", "disc"]))
    assert stable.denoiser.unet.times[-1].tolist() == [0, 29]
    torch.testing.assert_close(stable.schedule.abar[1:].float(), scheduler().alphas_cumprod)


def test_latents_are_scaled_both_ways(stable):
    images = torch.rand(2, 3, 16, 16)
    vae = stable.autoencoder.vae
    with torch.no_grad():
        torch.testing.assert_close(stable.encode(images), 0.25 * vae.down(2 * images - 1))
        z = torch.randn(2, 4, 8, 8)
        torch.testing.assert_close(stable.decode(0.25 * z), ((vae.up(z) + 1) / 2).clamp(0, 1))


@pytest.mark.parametrize(("theirs", "ours"), [("epsilon", "eps"), ("v_prediction", "v"), ("sample", "x0")])
def test_what_is_predicted_is_read_from_the_scheduler(theirs, ours):
    assert plugged(UNet(), scheduler(theirs)).predicts == ours


def test_rows_of_the_table_may_be_given_in_the_place_of_tokens(stable):
    ids = stable.context(["red disc"])
    with torch.no_grad():
        torch.testing.assert_close(stable.text.encode(stable.text.embed(ids)), stable.text(ids))
    rows = stable.text.embed(ids).detach().requires_grad_()
    stable(torch.randn(1, 4, 8, 8), torch.tensor([5]), stable.text.encode(rows)).sum().backward()
    assert rows.grad.any()


def test_places_of_a_word_in_pieces(stable):
    assert stable.text.tokenizer.places("red disk on blue", "disk") == [2, 3]
    assert stable.text.tokenizer.places("red disc on red", "red") == [1, 4]
    assert stable.text.tokenizer.places("red disc", "blue") == []


def test_attention_is_overheard(stable):
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3, 4]), stable.context(["red disc", "blue"])
    assert set(cross_attention(stable)) == {"denoiser.unet.attn2"}
    with watch_attention(stable) as seen:
        stable(x, t, context)
    (found,) = seen
    torch.testing.assert_close(found.probabilities, stable.denoiser.unet.attn2.seen)
    found.probabilities[..., 1].sum().backward()
    assert stable.denoiser.unet.attn2.to_k.weight.grad.any()
    stable(x, t, context)
    assert len(seen) == 1


def test_classes_and_nothing_may_be_told():
    model = plugged(UNet(channels=1, classes=3), scheduler(), classes=("a", "b", "c"))
    assert model.image_shape == (1, 8, 8)
    x = sample(model, of=["a", "c"], guidance=2.0, sampler="ddim(steps=3)", run=Run())
    assert x.shape == (2, 1, 8, 8)
    assert sample(plugged(UNet(channels=1), scheduler()), 2, sampler="ddim(steps=3)", run=Run()).shape == x.shape


def test_mistakes_are_said():
    with pytest.raises(UserError, match="both a tokenizer and a text encoder"):
        plugged(UNet(), scheduler(), tokenizer=Tokenizer())
    with pytest.raises(UserError, match="prediction type 'flow' is unknown"):
        plugged(UNet(), scheduler("flow"))
    bare = nn.Identity()
    with pytest.raises(UserError, match="give image_shape"):
        plugged(bare, scheduler())

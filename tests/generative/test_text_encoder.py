import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.data.shapes32 import Shapes32
from holdfast.errors import UserError
from holdfast.generative import TextEncoder, Tokenizer
from holdfast.generative.text_encoder import BOS, EOS, NULL, PAD

CAPTIONS = ("a red disc on blue", "a blue star on blue", "a faint red star on red")


@pytest.fixture
def tokenizer():
    return Tokenizer.learn(CAPTIONS, 8)


def test_words_that_all_captions_share_are_passed_over(tokenizer):
    assert tokenizer.words == ("blue", "disc", "faint", "red", "star")
    assert tokenizer.silent == ("a", "on")
    assert len(tokenizer) == 9
    red, disc, blue = (tokenizer.token(w) for w in ("red", "disc", "blue"))
    assert tokenizer(["a red disc on blue"]).tolist() == [[BOS, red, disc, blue, EOS, PAD, PAD, PAD]]
    assert torch.equal(tokenizer(["Red disc, blue!"]), tokenizer(["a red disc on blue"]))


def test_captions_of_shapes_fit_into_eight_tokens():
    images = Shapes32(n=400, size=12).draw("train", 400)
    tokenizer = Tokenizer.learn(images.columns["caption"])
    assert tokenizer.length <= 8
    assert {"red", "disc", "striped", "faint"} <= set(tokenizer.words)
    assert {"painting", "background"} <= set(tokenizer.silent)
    told = tokenizer(images.columns["caption"])
    assert len(told.unique(dim=0)) == len(set(images.columns["caption"]))


def test_a_caption_without_a_word_means_nothing(tokenizer):
    assert torch.equal(tokenizer(["", "a on"]), tokenizer.nothing(2))
    assert (tokenizer.nothing(2) == NULL).all()


@given(st.lists(st.sampled_from(["red", "blue", "disc", "star"]), min_size=1, max_size=6), st.integers(0, 99))
def test_what_is_written_is_read_wherever_it_stands(words, seed):
    tokenizer = Tokenizer.learn(CAPTIONS, 8)
    text = " ".join(words)
    ids = tokenizer([text], rng=torch.Generator().manual_seed(seed))
    assert tokenizer.read(ids) == tokenizer.read(tokenizer([text])) == [text]
    assert ids[0, 0] == BOS
    assert (ids == EOS).sum() == 1


def test_captions_stand_anywhere_in_the_room_there_is(tokenizer):
    ids = tokenizer(["red disc"] * 200, rng=torch.Generator().manual_seed(0))
    begins = (ids == tokenizer.token("red")).nonzero()[:, 1]
    assert set(begins.tolist()) == {1, 2, 3, 4, 5}


def test_places_are_those_of_the_word(tokenizer):
    assert tokenizer.places("a faint red star on red", "red") == [2, 4]
    assert tokenizer.places("a red disc", "star") == []


def test_mistakes_are_said_with_the_nearest_word(tokenizer):
    with pytest.raises(UserError, match=r"the word 'disk' is unknown to this model, which knows 5; .*'disc'") as caught:
        tokenizer(["a red disk"])
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="the nearest of them is"):
        tokenizer(["xyz"])
    with pytest.raises(UserError, match="has 7 words that this model must read, and it reads at most 6"):
        tokenizer(["red red red red red red red"])
    with pytest.raises(UserError, match="the longest takes 6 tokens, and 5 are allowed"):
        Tokenizer.learn(CAPTIONS, 5)
    with pytest.raises(UserError, match="no word in them that tells"):
        Tokenizer.learn(["the same", "the same!"])


@pytest.mark.parametrize("layers", [0, 2])
def test_the_rows_of_the_table_encode_as_the_tokens_do(tokenizer, layers):
    encoder = TextEncoder(tokenizer, dim=16, layers=layers)
    ids = tokenizer(CAPTIONS)
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode(encoder.embed(ids)), encoder(ids))
        onehot = torch.nn.functional.one_hot(ids, len(tokenizer)).float()
        torch.testing.assert_close(encoder.encode(onehot @ encoder.tokens.weight), encoder(ids))


def test_embeddings_take_gradients(tokenizer):
    encoder = TextEncoder(tokenizer, dim=16)
    embeddings = encoder.embed(tokenizer(["red disc"])).detach().requires_grad_()
    encoder.encode(embeddings)[:, 0].square()[:, ::2].sum().backward()
    assert (embeddings.grad.norm(dim=-1) > 0).all(), "the first word sees all others"


def test_without_layers_a_word_sees_no_other(tokenizer):
    encoder = TextEncoder(tokenizer, dim=16, layers=0)
    embeddings = encoder.embed(tokenizer(["red disc"])).detach().requires_grad_()
    encoder.encode(embeddings)[:, 0].square()[:, ::2].sum().backward()
    assert (embeddings.grad.norm(dim=-1) > 0).sum() == 1


def test_too_many_embeddings_are_refused(tokenizer):
    with pytest.raises(UserError, match="it reads 8 tokens, got 9"):
        TextEncoder(tokenizer, dim=16).encode(torch.zeros(1, 9, 16))
    with pytest.raises(UserError, match="4 heads do not divide 18"):
        TextEncoder(tokenizer, dim=18)

import pytest
import torch

from holdfast import UserError
from holdfast.files import read_json, write_json
from holdfast.models import (
    Measured,
    build_model,
    load_model,
    publish,
    weights_hash,
    zoo_card,
    zoo_names,
    zoo_weights,
)


@pytest.fixture
def zoo(tmp_path):
    model = build_model("convnet(width=4)", num_classes=3, image_shape=(1, 8, 8), mean=(0.3,), std=(0.4,))
    publish(
        model,
        "tiny-convnet",
        classes=("a", "b", "c"),
        data="digits",
        recipe="recipes/tiny.yaml",
        accuracy=Measured(value=0.5, n=10, data="digits test"),
        robust_accuracy=[Measured(value=0.1, n=10, data="digits test", attack="pgd(eps=0.3)")],
        folder=tmp_path,
    )
    return tmp_path


def test_a_published_model_is_listed_with_its_card(zoo):
    assert zoo_names(zoo) == ["tiny-convnet"]
    card = zoo_card("zoo:tiny-convnet", zoo)
    assert card == zoo_card("tiny-convnet", zoo)
    assert (card.architecture, card.num_classes, card.image_shape) == ("convnet(width=4)", 3, (1, 8, 8))
    assert card.robust_accuracy[0].attack == "pgd(eps=0.3)"
    assert set(card.trained_with) >= {"torch", "holdfast"}


def test_a_zoo_model_is_loaded_as_model_and_as_weights(zoo):
    model = load_model("zoo:tiny-convnet", zoo=zoo)
    same = load_model("convnet(width=4)", weights="zoo:tiny-convnet", zoo=zoo)
    assert weights_hash(model) == weights_hash(same)
    assert model.classes == ("a", "b", "c")
    assert not model.training
    assert model.fc.weight.dtype == torch.float32
    # the normalisation comes with the weights
    torch.testing.assert_close(model.normalize.std.item(), 0.4, rtol=1e-3, atol=0)


def test_damaged_weights_and_cards_are_refused(zoo):
    path = zoo / "tiny-convnet.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match="SHA-256 differs"):
        load_model("zoo:tiny-convnet", zoo=zoo)
    path.unlink()
    with pytest.raises(UserError, match="are missing"):
        zoo_weights("tiny-convnet", zoo)
    card = zoo / "tiny-convnet.json"
    write_json(card, read_json(card) | {"accuracy": {"value": 91.0, "n": 10, "data": "x"}})
    with pytest.raises(UserError, match=r"is not a zoo card: accuracy\.value"):
        zoo_card("tiny-convnet", zoo)


def test_a_misspelt_name_is_answered_with_the_right_one(zoo):
    with pytest.raises(UserError, match=r"zoo model 'tiny-convnt' is unknown\. Did you mean 'tiny-convnet'\?"):
        load_model("zoo:tiny-convnt", zoo=zoo)


def test_a_name_cannot_leave_the_folder(zoo):
    with pytest.raises(UserError, match="is unknown"):
        zoo_card("../tiny-convnet", zoo / "sub")


def test_only_models_of_build_model_are_published(tmp_path):
    with pytest.raises(UserError, match="only models of build_model"):
        publish(
            torch.nn.Linear(2, 2),
            "x",
            classes=("a", "b"),
            data="digits",
            recipe="r",
            accuracy=Measured(value=0.5, n=10, data="x"),
            folder=tmp_path,
        )


def test_the_bundled_cards_are_valid_and_their_weights_whole():
    for name in zoo_names():
        assert zoo_weights(name).is_file()
        assert zoo_card(name).name == name

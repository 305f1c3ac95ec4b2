import json
import os
import sys

import pytest
import safetensors.torch
import torch

from holdfast import UserError
from holdfast.models import build_model, load_model, save_weights, weights_hash


@pytest.fixture
def model():
    return build_model("convnet(width=4)", num_classes=3, image_shape=(1, 8, 8), mean=(0.2,))


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(model, path, {"classes": ["a", "b", "c"]})
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("holdfast_user_", "my", "sibling")):
            del sys.modules[name]


def refusal(*args, **kwargs):
    with pytest.raises(UserError) as caught:
        load_model(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return caught.value


def test_an_architecture_takes_what_it_lacks_from_the_file(model, saved):
    loaded = load_model("convnet(width=4)", weights=saved)
    assert weights_hash(loaded) == weights_hash(model)
    assert not loaded.training
    assert (loaded.num_classes, loaded.image_shape, loaded.classes) == (3, (1, 8, 8), ("a", "b", "c"))


def test_a_file_that_names_its_architecture_is_enough(model, saved):
    assert weights_hash(load_model(str(saved))) == weights_hash(model)


def test_a_file_that_says_nothing_is_read_by_its_tensors(model, tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"state_dict": model.state_dict()}, path)
    loaded = load_model("convnet(width=4)", weights=path)
    assert weights_hash(loaded) == weights_hash(model)
    assert loaded.num_classes == 3
    assert "does not say which architecture" in str(refusal(_bare(tmp_path / "bare.safetensors", model.state_dict())))


def _bare(path, tensors):
    safetensors.torch.save_file(dict(tensors), path)
    return path


def test_a_file_without_a_known_head_needs_the_number_of_classes(tmp_path):
    path = _bare(tmp_path / "w.safetensors", {"a.weight": torch.zeros(2)})
    assert "does not say how many classes" in str(refusal("convnet", weights=path))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_classes": 7}, "is for 3 classes, but 7 are needed"),
        ({"classes": ["a", "b"]}, "is for 3 classes, but 2 are needed"),
        ({"classes": ["c", "b", "a"]}, "has the same classes in another order: a, b, c"),
        ({"image_shape": (3, 8, 8)}, "is for images of 1 channels, but the images have 3"),
    ],
)
def test_a_task_that_the_weights_are_not_for_is_refused(saved, kwargs, message):
    assert message in str(refusal("convnet(width=4)", weights=saved, **kwargs))


def test_another_image_size_is_left_to_the_architecture(saved):
    loaded = load_model("convnet(width=4)", weights=saved, image_shape=(1, 20, 12), classes=["a", "b", "c"])
    assert loaded(torch.rand(2, 1, 20, 12)).shape == (2, 3)


def test_what_cannot_be_a_model_is_refused_with_the_remedy(saved, here):
    for spec, weights, message in (
        ("resnet20", None, "is an architecture without weights: give"),
        ("resnet21", saved, "Did you mean 'resnet"),
        ("nothing like it", None, "It takes an architecture, zoo:NAME"),
        ("convnet(width=5)", saved, "does not fit convnet(width=5): "),
        (str(saved), saved, "give one of them"),
        ("zoo:x", saved, "leave out weights"),
        ("zoo:no-such-model", None, "zoo model 'no-such-model' is unknown"),
        ("convnet", "zoo:no-such-model", "zoo model 'no-such-model' is unknown"),
        ("w.pt2", None, "torch.export program"),
        ("w.pth", None, "name the architecture as the model"),
        ("my.py", None, "say which function"),
        ("my.py:make", None, "my.py is no file"),
        ("no_such_package.models:make", None, "there is no module 'no_such_package.models' here"),
        ("json:no_such_function", None, "json has no 'no_such_function'"),
        ("json:load.x", None, "json has no 'x'"),
        ("absent.safetensors", None, "no such file"),
    ):
        assert message in str(refusal(spec, weights=weights))


FACTORY = """
import sibling
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(sibling.PIXELS, 2))

def sized(num_classes, image_shape=(1, 2, 2), *, width=8):
    assert width == 8
    c, h, w = image_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, num_classes))

class Net(nn.Linear):
    def __init__(self):
        super().__init__(4, 2)

ready = make()
number = 3

def wrong():
    return {"model": make()}

def needy(depth):
    return make()

def failing():
    return nn.Linear(-1, undefined_name)

def leaving():
    raise SystemExit(3)
"""


@pytest.fixture
def code(here):
    (here / "sibling.py").write_text("PIXELS = 4\n")
    (here / "my.py").write_text(FACTORY)
    return here


@pytest.mark.parametrize("where", ["my.py", "./my.py", "my"])
@pytest.mark.parametrize("what", ["make", "Net", "ready"])
def test_the_users_own_code_gives_the_model(code, where, what):
    path = list(sys.path)
    model = load_model(f"{where}:{what}")
    assert sum(p.numel() for p in model.parameters()) == 10
    assert not model.training
    assert sys.path == path


def test_a_file_elsewhere_finds_its_neighbours(code, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load_model(f"{code / 'my.py'}:make")[1].out_features == 2


def test_a_factory_gets_the_sizes_it_asks_for(code):
    model = load_model("my.py:sized", num_classes=5, image_shape=(3, 4, 6))
    assert (model[1].in_features, model[1].out_features) == (72, 5)


def test_weights_are_loaded_into_the_users_own_model(code):
    source = load_model("my.py:make")
    torch.save(source.state_dict(), "w.pt")
    target = load_model("my.py:make", weights="w.pt")
    assert weights_hash(source) == weights_hash(target)
    assert "does not fit Net: it lacks weight, bias" in str(refusal("my.py:Net", weights="w.pt"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my.py:wrong", "wrong() must return an nn.Module, got a dict"),
        ("my.py:needy", "its argument 'depth' has no default"),
        ("my.py:number", "is a int; a function that returns a model is needed"),
        ("my.py:mkae", "has no 'mkae'. Did you mean 'make'?"),
    ],
)
def test_code_that_gives_no_model_is_refused(code, spec, message):
    assert message in str(refusal(spec))


def test_an_error_in_the_users_code_is_told_with_its_line(code):
    error = refusal("my.py:failing")
    assert "failing() failed: NameError: name 'undefined_name' is not defined" in str(error)
    line = 1 + FACTORY.splitlines().index("    return nn.Linear(-1, undefined_name)")
    assert f"my.py, line {line})" in str(error)
    assert isinstance(error.__cause__, NameError)
    assert "leaving() failed: SystemExit: 3" in str(refusal("my.py:leaving"))


@pytest.mark.parametrize("where", ["my.py", "my"])
def test_code_that_cannot_be_imported_is_told_with_its_line(here, where):
    (here / "my.py").write_text("x = 1\nimport no_such_thing\n")
    error = refusal(f"{where}:make")
    assert "cannot be imported: ModuleNotFoundError: No module named 'no_such_thing'" in str(error)
    assert "my.py, line 2)" in str(error)
    (here / "my2.py").write_text("def make(:\n")
    error = refusal(f"{where.replace('my', 'my2')}:make")
    assert "SyntaxError" in str(error)
    assert "my2.py, line 1)" in str(error)


def test_an_exported_program_is_read_by_the_users_own_code_only(model, here):
    x = torch.rand(2, 1, 8, 8)
    torch.export.save(torch.export.export(model.eval(), (x,)), "w.pt2")
    assert "is refused" in str(refusal("w.pt2"))
    assert "is refused" in str(refusal("convnet", weights="w.pt2"))
    (here / "my.py").write_text("import torch\ndef make():\n    return torch.export.load('w.pt2').module()\n")
    torch.testing.assert_close(load_model("my.py:make")(x), model(x))


def test_metadata_never_names_code(here, model):
    path = here / "w.safetensors"
    (here / "my.py").write_text("import os\nos.mkdir('touched')\n")
    save_weights(model, path, {"architecture": "my.py:make"})
    assert "model 'my.py:make' is unknown" in str(refusal(path))
    assert not os.path.exists("touched")
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, {"architecture": json.dumps(["x"])})
    refusal(path, num_classes=2)

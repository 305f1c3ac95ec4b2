import copy
import json
import os
import pickle

import pytest
import safetensors.torch
import torch
from torch import nn

from holdfast import UserError
from holdfast.models import build_model, load_weights, read_weights, save_weights, weights_hash


@pytest.fixture
def model():
    return build_model("convnet(width=4)", num_classes=3, image_shape=(1, 8, 8))


@pytest.fixture
def other():
    from holdfast import Run

    return build_model("convnet(width=4)", num_classes=3, image_shape=(1, 8, 8), run=Run(seed=1))


class Trap:
    """A pickle of this makes a folder when it is read by an unrestricted reader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_weights_survive_the_round_trip_with_their_metadata(model, other, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(model, path, {"classes": ["a", "b", "c"], "note": "10"})
    assert weights_hash(other) != weights_hash(model)
    metadata = load_weights(other, path)
    assert weights_hash(other) == weights_hash(model)
    assert metadata == {
        "architecture": "convnet(width=4)",
        "num_classes": 3,
        "image_shape": (1, 8, 8),
        "classes": ("a", "b", "c"),
        "note": "10",
    }
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_half_precision_files_fill_full_precision_models(model, other, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(model, path, dtype=torch.float16)
    assert read_weights(path).tensors["fc.weight"].dtype == torch.float16
    load_weights(other, path)
    assert other.fc.weight.dtype == torch.float32
    assert torch.equal(other.fc.weight, model.fc.weight.half().float())
    assert other.features[1].num_batches_tracked.dtype == torch.int64


def test_values_too_large_for_the_stored_type_are_refused(model, tmp_path):
    model.features[1].running_var.fill_(1e6)
    with pytest.raises(UserError, match=r"features.1.running_var holds values that float16 cannot"):
        save_weights(model, tmp_path / "w.safetensors", dtype=torch.float16)
    assert os.listdir(tmp_path) == []


def test_tied_and_channels_last_weights_are_saved(tmp_path):
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv2d(3, 4, 3))
    tied[1].weight = tied[0].weight
    tied.to(memory_format=torch.channels_last)
    save_weights(tied, tmp_path / "w.safetensors")
    fresh = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv2d(3, 4, 3))
    load_weights(fresh, tmp_path / "w.safetensors")
    assert weights_hash(fresh) == weights_hash(tied)


def test_the_hash_sees_every_bit_and_nothing_else(model):
    value = weights_hash(model)
    assert len(value) == 16
    same = copy.deepcopy(model).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    assert weights_hash(same) == value
    for change in (
        lambda m: m.fc.bias.data[0].add_(1e-6),
        lambda m: m.features[1].running_mean[0].add_(1e-6),
        lambda m: m.double(),
    ):
        changed = copy.deepcopy(model)
        change(changed)
        assert weights_hash(changed) != value


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module.model."])
@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_state_dicts_of_torch_save_are_read_with_wrappers_and_prefixes(model, other, tmp_path, prefix, wrap):
    state = {prefix + name: value for name, value in model.state_dict().items()}
    path = tmp_path / "w.pth"
    torch.save(state if wrap is None else {wrap: state, "epoch": 3, "lr": [0.1]}, path)
    load_weights(other, path)
    assert weights_hash(other) == weights_hash(model)


def test_files_without_batch_counters_fit(model, other, tmp_path):
    path = tmp_path / "w.pt"
    torch.save({k: v for k, v in model.state_dict().items() if "num_batches" not in k}, path)
    load_weights(other, path)
    assert torch.equal(other.features[1].weight, model.features[1].weight)


def test_a_file_that_does_not_fit_is_refused_by_name_and_changes_nothing(model, tmp_path):
    path = tmp_path / "w.pt"
    state = model.state_dict()
    state["head.weight"] = state.pop("fc.weight")
    state["fc.bias"] = torch.zeros(7)
    torch.save(state, path)
    before = weights_hash(model)
    with pytest.raises(UserError) as caught:
        load_weights(model, path)
    assert str(caught.value) == (
        f"{path} does not fit convnet(width=4): it lacks fc.weight; the model has no head.weight; "
        "fc.bias has shape (7,) where the model has (3,)."
    )
    assert weights_hash(model) == before


def test_weights_without_normalisation_say_what_to_do(model, tmp_path):
    path = tmp_path / "w.pt"
    torch.save({k: v for k, v in model.state_dict().items() if "normalize" not in k}, path)
    with pytest.raises(UserError, match=r"it lacks normalize.mean, normalize.std\. .* factory of your own"):
        load_weights(model, path)


@pytest.mark.parametrize("writer", ["torch.save", "pickle", "legacy", "inside a state dict"])
def test_a_pickle_that_would_run_code_is_refused_and_nothing_runs(model, tmp_path, writer):
    path, touched = tmp_path / "w.pt", tmp_path / "touched"
    trap = Trap(touched)
    if writer == "pickle":
        path.write_bytes(pickle.dumps(trap))
    elif writer == "inside a state dict":
        torch.save({"state_dict": model.state_dict(), "extra": trap}, path)
    else:
        torch.save(trap, path, _use_new_zipfile_serialization=writer == "torch.save")
    with pytest.raises(UserError, match=r"could run code.*nothing was run.*safetensors\.torch\.save_model"):
        load_weights(model, path)
    assert not touched.exists()


def test_a_whole_pickled_model_is_refused_with_the_remedy(model, tmp_path):
    torch.save(model, tmp_path / "w.pth")
    with pytest.raises(UserError, match="pickle of more than tensors"):
        load_weights(model, tmp_path / "w.pth")
    # the remedy works
    trusted = torch.load(tmp_path / "w.pth", weights_only=False)
    safetensors.torch.save_model(trusted, str(tmp_path / "w.safetensors"))
    load_weights(model, tmp_path / "w.safetensors")


def test_a_scripted_model_is_refused(model, tmp_path):
    torch.jit.save(torch.jit.trace(model.eval(), torch.rand(1, 1, 8, 8)), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w\.pt"):
        load_weights(model, tmp_path / "w.pt")


def test_damaged_missing_and_foreign_files_are_refused_in_one_sentence(model, tmp_path):
    good = tmp_path / "good.safetensors"
    save_weights(model, good)
    torch.save(model.state_dict(), tmp_path / "good.pt")
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-40])
    (tmp_path / "cut.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:900])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello" * 20)
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"lr": 0.1, "epoch": 3}, tmp_path / "config.pt")
    torch.save({}, tmp_path / "nothing.pt")
    (tmp_path / "w.onnx").write_bytes(b"1")
    (tmp_path / "w.pt2").write_bytes(b"1")
    (tmp_path / "folder.pt").mkdir()
    names = "cut.safetensors cut.pt empty.safetensors empty.pt text.pt text.safetensors list.pt config.pt nothing.pt"
    for name in [*names.split(), "w.onnx", "w.pt2", "folder.pt", "absent.pt", "absent.safetensors"]:
        with pytest.raises(UserError) as caught:
            load_weights(model, tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_impossible_metadata_is_refused(model, tmp_path):
    path = tmp_path / "w.safetensors"
    for metadata in ({"num_classes": -3}, {"image_shape": [3, 32]}, {"classes": "abc"}, {"num_classes": "x"}):
        safetensors.torch.save_file({"a": torch.zeros(1)}, path, {k: json.dumps(v) for k, v in metadata.items()})
        with pytest.raises(UserError, match="which cannot be"):
            read_weights(path)


def test_weights_are_written_as_safetensors_only(model, tmp_path):
    with pytest.raises(UserError, match=r"written as \.safetensors"):
        save_weights(model, tmp_path / "w.pt")

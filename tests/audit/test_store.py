import pytest
import torch

from holdfast import UserError
from holdfast.audit import store as module
from holdfast.audit.store import Store


def test_what_is_kept_is_not_computed_again(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"x": torch.arange(3.0), "flags": torch.tensor([True, False])}

    first = Store(tmp_path, {"model": "a"})
    assert first.tensors("thing", {"n": 3}, compute)["x"].tolist() == [0, 1, 2]
    assert first.tensors("thing", {"n": 3}, compute)["flags"].tolist() == [True, False]
    again = Store(tmp_path, {"model": "a"}).tensors("thing", {"n": 3}, compute)
    assert again["x"].dtype == torch.float32
    assert again["flags"].dtype == torch.bool
    assert len(calls) == 1


@pytest.mark.parametrize("change", ["settings", "name", "seed", "code"])
def test_whatever_a_result_depends_on_is_in_its_key(tmp_path, monkeypatch, change):
    calls = []

    def compute():
        calls.append(1)
        return {"x": torch.zeros(1)}

    Store(tmp_path, {"model": "a"}, seed=0).tensors("thing", {"n": 3}, compute)
    if change == "code":
        monkeypatch.setattr(module, "code_hash", lambda: "other")
    store = Store(tmp_path, {"model": "a"}, seed=1 if change == "seed" else 0)
    store.tensors("other" if change == "name" else "thing", {"n": 4 if change == "settings" else 3}, compute)
    assert len(calls) == 2


def test_values_come_back_with_their_tensors(tmp_path):
    value = {"pi": 3.141592653589793, "list": [1, None, "ü"]}
    Store(tmp_path, {}).record("r", {}, lambda: (value, {"a|b": torch.ones(2)}))
    found, tensors = Store(tmp_path, {}).record("r", {}, lambda: pytest.fail("computed again"))
    assert found == value
    assert tensors["a|b"].tolist() == [1, 1]


def test_a_damaged_file_is_worked_out_again(tmp_path):
    Store(tmp_path, {}).tensors("thing", {}, lambda: {"x": torch.ones(1)})
    (path,) = (tmp_path / "state").glob("thing-*.safetensors")
    path.write_bytes(path.read_bytes()[:-2])
    assert Store(tmp_path, {}).tensors("thing", {}, lambda: {"x": torch.zeros(1)})["x"].item() == 0


def test_another_subject_is_refused(tmp_path):
    Store(tmp_path, {"model": "a", "data": "b"})
    with pytest.raises(UserError, match="holds the audit of another data"):
        Store(tmp_path, {"model": "a", "data": "c"})


def test_without_a_folder_nothing_is_written_and_results_are_kept_in_memory():
    calls = []
    store = Store(None, {})
    for _ in range(2):
        store.tensors("thing", {}, lambda: calls.append(1) or {"x": torch.zeros(1)})
    assert len(calls) == 1


def test_random_numbers_of_the_model_depend_on_what_is_computed_and_not_on_what_was_before(tmp_path):
    def draw():
        return {"x": torch.rand(2)}

    torch.default_generator.manual_seed(1)
    first = Store(None, {}).tensors("thing", {}, draw)["x"]
    torch.default_generator.manual_seed(2)
    store = Store(None, {})
    other = store.tensors("other", {}, draw)["x"]
    assert torch.equal(store.tensors("thing", {}, draw)["x"], first)
    assert not torch.equal(other, first)

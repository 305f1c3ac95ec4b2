"""The memory: who stays, with what probability, and that nobody comes back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from holdfast.continual import Memory, identified
from holdfast.continual.memory import LOGITS, ids_of
from holdfast.errors import UserError
from holdfast.models import save_tensors
from holdfast.run import Run


def logits_of(images):
    """A row of its own for each id."""
    return ids_of(images)[:, None] * torch.tensor([1.0, 10.0, 100.0])


def shown(memory, images, seed=0):
    return memory.insert(images, logits_of, rng=torch.Generator().manual_seed(seed))


def consistent(memory):
    """Every image stands with its own label, logits and pixels."""
    images = memory.images
    assert torch.equal(images.y, memory.ids % 3)
    assert torch.equal(images.x[:, 0, 0, 0].long(), memory.ids)
    assert torch.equal(memory.logits, logits_of(images) if len(memory) else memory.logits)
    assert len(memory.ids.unique()) == len(memory) <= memory.capacity
    assert not torch.isin(memory.ids, memory.removed).any()
    assert len(memory) <= memory.seen or not len(memory)


def test_each_of_many_images_is_kept_with_the_same_probability(tiny):
    images, capacity, draws = tiny(range(60)), 15, 800
    empty = Memory.empty(capacity, images)
    counts = torch.zeros(60)
    rng = torch.Generator().manual_seed(0)
    for _ in range(draws):
        counts[empty.insert(images, logits_of, rng=rng).ids] += 1
    expected = draws * capacity / 60
    # Drawn without replacement, the counts vary by a factor 1 - 15/60 less than those of independent draws.
    statistic = float(((counts - expected) ** 2 / (expected * (1 - capacity / 60))).sum()) * 59 / 60
    assert chi2.ppf(0.001, 59) < statistic < chi2.ppf(0.999, 59)


def test_the_second_part_of_a_stream_is_kept_as_often_as_the_first(tiny):
    first, second = tiny(range(40)), tiny(range(40, 60))
    rng = torch.Generator().manual_seed(1)
    late = sum(
        int((m.ids >= 40).sum())
        for m in (
            Memory.empty(12, first).insert(first, logits_of, rng=rng).insert(second, logits_of, rng=rng)
            for _ in range(400)
        )
    )
    assert late / 400 == pytest.approx(12 * 20 / 60, abs=0.3)  # about five standard errors


def test_parts_shown_one_after_the_other_are_as_one(tiny):
    whole, rng = tiny(range(50)), torch.Generator().manual_seed(3)
    empty = Memory.empty(7, whole)
    parts = empty.insert(whole.select(slice(0, 20)), logits_of, rng=rng)
    parts = parts.insert(whole.select(slice(20, 50)), logits_of, rng=rng)
    assert parts.fingerprint() == shown(empty, whole, seed=3).fingerprint()


@given(
    capacity=st.integers(0, 12),
    steps=st.lists(st.tuples(st.integers(0, 15), st.lists(st.integers(0, 120), max_size=8)), max_size=6),
    seed=st.integers(0, 5),
)
def test_no_removed_image_comes_back_and_rows_stay_together(tiny, capacity, steps, seed):
    memory, next_id, gone = Memory.empty(capacity, tiny([0])), 0, set()
    for count, wanted in steps:
        ids = [id for id in wanted if id < next_id]
        gone |= set(ids)
        memory = memory.remove(torch.tensor(ids, dtype=torch.int64))
        consistent(memory)
        free, before = memory.capacity - len(memory), set(memory.ids.tolist())
        memory = shown(memory, tiny(range(next_id, next_id + count)), seed)
        consistent(memory)
        first = set(range(next_id, next_id + min(free, count)))
        assert len(memory) == min(capacity, capacity - free + count)
        if count <= free:
            assert set(memory.ids.tolist()) == before | first, "free places are filled before any image is replaced"
        next_id += count
        assert not gone & set(memory.ids.tolist())
    assert memory.seen == next_id - len(gone) or memory.seen == len(memory)


def test_removed_and_present_ids_are_refused(tiny):
    memory = shown(Memory.empty(5, tiny([0])), tiny([1, 2, 3])).remove(torch.tensor([2]))
    with pytest.raises(UserError, match="image 2 was removed and cannot come back"):
        shown(memory, tiny([2]))
    with pytest.raises(UserError, match="image 3 is in the memory already"):
        shown(memory, tiny([3, 4]))


def test_what_was_given_stays_as_it_was(tiny):
    memory = shown(Memory.empty(5, tiny([0])), tiny(range(5)))
    before = memory.fingerprint()
    shown(memory, tiny(range(10, 40)))
    memory.remove(torch.tensor([1]))
    assert memory.fingerprint() == before


@pytest.mark.parametrize("capacity", [0, 4])
def test_a_memory_survives_its_file(tiny, tmp_path, capacity):
    memory = shown(Memory.empty(capacity, tiny([0])), tiny(range(9))).remove(torch.tensor([3, 5]))
    memory.save(tmp_path / "memory.safetensors")
    again = Memory.load(tmp_path / "memory.safetensors")
    assert again.fingerprint() == memory.fingerprint()
    assert (again.capacity, again.seen, again.images.classes) == (capacity, memory.seen, ("a", "b", "c"))
    more = tiny(range(20, 40))
    assert shown(again, more).fingerprint() == shown(memory, more).fingerprint()


def test_a_file_without_a_memory_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_tensors({"w": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="holds no memory"):
        Memory.load(path)


def test_images_are_kept_as_they_are(train):
    logits, asked = torch.randn(len(train), 10), []

    def answer(images):
        asked.append(len(images))
        return logits[ids_of(images)]

    memory = Memory.empty(30, train).insert(train, answer, rng=Run().rng("reservoir"))
    assert asked == [30], "only of those that stay"
    assert memory.images.x.dtype == train.x.dtype
    assert torch.equal(memory.images.x, train.x[memory.ids])
    assert torch.equal(memory.images.y, train.y[memory.ids])
    assert torch.equal(memory.images.columns[LOGITS], logits[memory.ids])


@pytest.mark.parametrize("capacity", [-1, 1.5, True, "500"])
def test_a_strange_capacity_is_refused(tiny, capacity):
    with pytest.raises(UserError, match="capacity must be a whole number"):
        Memory.empty(capacity, tiny([0]))


def test_images_without_ids_are_refused(digits, tiny):
    with pytest.raises(UserError, match="need a column 'id'"):
        ids_of(digits.train)
    with pytest.raises(UserError, match="two images have the same id"):
        ids_of(tiny([1, 1]))
    assert torch.equal(ids_of(identified(digits.test)), torch.arange(len(digits.test)))

"""The base of the proofs of unlearning in diffusion models, without training its models."""

from dataclasses import dataclass

import pytest
import torch

from holdfast.generative import DDPMDDIMCFG, Judge, save_diffusion
from holdfast.models import weights_hash
from holdfast.proofs import diffusion_bench as base
from holdfast.proofs.diffusion_bench import ATTRIBUTES, DiffusionBench, Drawn, captioned_shapes, kept, prompts
from holdfast.proofs.lab import Lab
from holdfast.run import Run
from holdfast.training import ClipGradient


@pytest.fixture(scope="module")
def pictures():
    return captioned_shapes(600, "train")


@pytest.fixture
def bench(pictures):
    """Nothing has learnt anything."""
    model = DDPMDDIMCFG(width=8, steps=20, tokens=10).untrained(pictures, run=Run()).eval()
    judge = Judge(ATTRIBUTES, pictures.shape, width=4, run=Run()).eval()
    return DiffusionBench(Lab("smoke", Run()), model, judge, pictures, pictures)


def test_captions_say_what_the_pictures_show(pictures):
    assert pictures.shape == (3, 16, 16)
    assert 80 < len(pictures) < 160  # a fifth is plain
    for caption, y, colour in zip(
        pictures.columns["caption"], pictures.y.tolist(), pictures.columns["colour"].tolist(), strict=True
    ):
        said, shape, on, _ = str(caption).split()
        assert (said, shape, on) == (ATTRIBUTES["colour"][colour], pictures.classes[y], "on")


def test_prompts_are_words_that_the_model_knows_and_leave_room_for_five_more(bench):
    tokenizer = bench.model.text.tokenizer
    ids = tokenizer(prompts())
    assert tokenizer.length == 10
    assert int((ids[:, 5:] == 0).all()) == 1
    assert set(map(len, map(str.split, prompts()))) == {4}


def test_prompts_name_every_pair_and_each_time_another_background():
    twice = prompts(shape=["disc"], each=2)
    assert len(twice) == 20
    assert len(set(twice)) == 20
    assert {text.split()[0] for text in twice} == set(ATTRIBUTES["colour"])
    assert len(set(prompts(each=6))) == 600


def test_images_of_a_concept_are_those_whose_caption_names_it(bench):
    discs, reds = bench.images_of("disc"), bench.images_of("red")
    assert (discs.y == 0).all()
    assert len(discs) == int((bench.train.y == 0).sum())
    assert (reds.columns["colour"] == 0).all()


def test_the_same_prompts_begin_with_the_same_noise_for_any_model(bench):
    first, again = (bench.draw(bench.original(), ["red disc on plain", "blue star on dotted"]) for _ in range(2))
    assert torch.equal(first.x, again.x)
    assert first.asked["shape"].tolist() == [0, 3]
    assert first.asked["colour"].tolist() == [0, 6]
    other = bench.draw(bench.model, ["red disc on plain", "blue star on dotted"], name="other")
    assert not torch.equal(first.x, other.x)


def test_a_copy_may_be_changed(bench):
    before = weights_hash(bench.model)
    with torch.no_grad():
        next(bench.original().parameters()).add_(1)
    assert weights_hash(bench.model) == before


@dataclass(frozen=True, eq=False)
class Seeing(DiffusionBench):
    """Instead of drawing, each picture shows what a function says."""

    def draw(self, model, asked, *, guidance=2.0, name="draw"):
        places = {
            a: torch.tensor([next(i for i, v in enumerate(values) if v in text.split()) for text in asked])
            for a, values in ATTRIBUTES.items()
        }
        return Drawn(list(asked), torch.zeros(len(asked), 3, 16, 16), places, model(places))


@pytest.mark.parametrize(
    ("seen", "ua", "ira", "cra"),
    [
        (lambda asked: asked, 0.0, 1.0, 1.0),  # nothing was unlearnt
        (lambda asked: {k: (v + 1) % 10 for k, v in asked.items()}, 1.0, 0.0, 0.0),  # all was
        (lambda asked: asked | {"shape": torch.where(asked["shape"] == 0, 3, asked["shape"])}, 1.0, 1.0, 1.0),
        (lambda asked: asked | {"shape": torch.full_like(asked["shape"], 3)}, 1.0, 1 / 9, 1.0),
        (lambda asked: asked | {"colour": torch.full_like(asked["colour"], 3)}, 0.0, 1.0, 1 / 10),
    ],
)
def test_unlearning_and_keeping_are_counted_apart(bench, seen, ua, ira, cra):
    seeing = Seeing(bench.lab, bench.model, bench.judge, bench.train, bench.test)
    found = seeing.unlearnt(seen, "disc")
    assert (found.ua, found.ira, found.cra) == pytest.approx((ua, ira, cra))
    assert found.n == (60, 90)


def test_a_colour_may_be_erased_as_well(bench):
    seeing = Seeing(bench.lab, bench.model, bench.judge, bench.train, bench.test)
    blind = seeing.unlearnt(lambda asked: asked | {"colour": torch.full_like(asked["colour"], 3)}, "red")
    assert (blind.ua, blind.ira, blind.cra) == pytest.approx((1.0, 1 / 9, 1.0))


def test_what_is_kept_is_not_made_again(bench, tmp_path):
    save_diffusion(bench.model, tmp_path / "a")

    def never(run):
        raise AssertionError("it is there")

    assert weights_hash(kept(never, tmp_path / "a", run=Run())) == weights_hash(bench.model)


def test_a_model_whose_training_was_stopped_is_trained_on(pictures, tmp_path):
    few = pictures.select(slice(0, 32))
    method = DDPMDDIMCFG(updates=6, batch_size=16, width=8, steps=20)

    def stopped(run):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ClipGradient, "on_epoch", lambda self, state: exit_after(state, 1))
            return method(few, run=run)

    def exit_after(state, epoch):
        if state.epoch == epoch:
            raise KeyboardInterrupt

    def goes_on(run):
        assert (run.out / "checkpoint.pt").is_file()
        return method(few, run=run)

    with pytest.raises(KeyboardInterrupt):
        kept(stopped, tmp_path / "m", run=Run())
    assert not (tmp_path / "m").exists()
    model = kept(goes_on, tmp_path / "m", run=Run())
    assert weights_hash(model) == weights_hash(method(few, run=Run()))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_its_place_tells_settings_seeds_and_data_apart(pictures):
    lab = Lab("smoke", Run())
    places = {
        base.place_for("model", lab, pictures, {"lr": 1}),
        base.place_for("model", lab, pictures, {"lr": 2}),
        base.place_for("model", Lab("smoke", Run(seed=1)), pictures, {"lr": 1}),
        base.place_for("model", lab, pictures.select(slice(0, 50)), {"lr": 1}),
    }
    assert len(places) == 4
    assert base.place_for("model", Lab("cpu", Run()), pictures, {"lr": 1}) in places

import dataclasses
import json

import pytest
import torch

from holdfast.data import Images, load_data, to_float
from holdfast.errors import UserError
from holdfast.evasion.model_parsing import ModelParsing, judge
from holdfast.evasion.parsing_network import LargestIsOne, Parsed, Parser, encoded, load_parser
from holdfast.evasion.victims import Examples, Victim, VictimNet, attack_victims, attributes_of, train_victims
from holdfast.models import predict, read_weights, save_tensors, weights_hash
from holdfast.run import Run

RUN = Run(device="cpu")
DIGITS = load_data("digits")
ATTACKS = ("fgsm(eps=0.25)", "pgd(eps=0.25, steps=3)")


@pytest.fixture(scope="module")
def victims():
    return train_victims(DIGITS.train, kernels=(3, 7), activations=("relu", "tanh"), width=4, epochs=2, run=RUN)


@pytest.fixture(scope="module")
def examples(victims):
    return attack_victims(victims, ATTACKS, DIGITS.test, run=RUN)


def planted(counts=(60, 60, 60, 60), side=8, seed=0, noise=0.0):
    """Perturbations by hand: one attribute is the direction of stripes, the other their sign in the first row."""
    rng = torch.Generator().manual_seed(seed)
    known = tuple({"way": way, "sign": sign} for way in ("across", "down") for sign in ("plus", "minus"))
    stripes = torch.ones(side, side)
    stripes[1::4] = stripes[2::4] = -1
    signs = torch.stack([stripes, -stripes, stripes.T, -stripes.T])
    victim = torch.cat([torch.full((count,), v) for v, count in enumerate(counts)])
    image = torch.cat([torch.arange(count) for count in counts])
    clean = torch.randint(60, 190, (max(counts), 1, side, side), generator=rng, dtype=torch.uint8)
    delta = 12 * signs[victim][:, None] * (1 - noise)
    delta = delta + noise * torch.randint(-12, 13, (len(victim), 1, side, side), generator=rng)
    x = (clean[image].float() + delta.round()).to(torch.uint8)
    attack = torch.zeros(len(victim), dtype=torch.int64)
    return Examples(x=x, clean=clean, image=image, victim=victim, attack=attack, victims=known, attacks=("by hand",))


SMALL = ModelParsing(width=8, epochs=4, batch_size=16)


# --- what it learns from ----------------------------------------------------------------------------------------------


def test_no_image_is_on_both_sides_of_the_split(examples):
    seen, unseen = examples.halves(0.8)
    assert not set(seen.image.tolist()) & set(unseen.image.tolist())
    assert len(seen) + len(unseen) == len(examples)
    assert int(seen.image.max()) < round(0.8 * len(DIGITS.test)) <= int(unseen.image.min())


def test_examples_fool_the_victim_they_were_made_on_and_no_other_count(victims, examples):
    rounded = DIGITS.test.but(x=(DIGITS.test.x * 255).round().byte())
    for v, victim in enumerate(victims):
        right = predict(victim.model, rounded, run=RUN).argmax(1) == rounded.y
        for attack in ATTACKS:
            mine = examples.of(attack)
            mine = mine.select(mine.victim == v)
            assert len(mine) > 50
            assert right[mine.image].all()
            assert len(mine.image.unique()) == len(mine)
            fooled = DIGITS.test.select(mine.image).but(x=mine.x)
            assert (predict(victim.model, fooled, run=RUN).argmax(1) != fooled.y).all()
            moved = (to_float(mine.x) - to_float(mine.clean[mine.image])).abs().amax()
            assert 0.2 < moved <= 0.25 + 0.5 / 255 + 1e-6


def test_victims_are_what_they_say_and_the_same_every_time(victims):
    assert [v.attributes for v in victims] == [
        {"kernel": k, "activation": a} for k in ("3", "7") for a in ("relu", "tanh")
    ]
    assert victims[2].model.features[0].kernel_size == (7, 7)
    assert isinstance(victims[3].model.features[2], torch.nn.Tanh)
    state = torch.random.get_rng_state()
    [again] = train_victims(DIGITS.train, kernels=(7,), activations=("tanh",), width=4, epochs=2, run=RUN)
    assert weights_hash(again.model) == weights_hash(victims[3].model)
    assert torch.equal(torch.random.get_rng_state(), state)
    accuracy = (predict(again.model, DIGITS.test, run=RUN).argmax(1) == DIGITS.test.y).double().mean()
    assert accuracy > 0.5


def test_unrounded_examples_keep_the_attacks_floats(victims):
    few = DIGITS.test.select(slice(0, 40))
    attack = ("pgd(eps=0.2, steps=2)",)
    rough, fine = (attack_victims(victims[:1], attack, few, rounding=r, run=RUN) for r in ("8-bit", "none"))
    assert rough.x.dtype == torch.uint8
    assert fine.x.dtype == torch.float32
    assert not torch.equal((fine.x * 255).round() / 255, fine.x)


def test_attributes_that_all_share_are_left_out_and_those_of_some_refused():
    made = [{"kernel": "3", "net": "a"}, {"kernel": "5", "net": "a"}, {"kernel": "3", "net": "a"}]
    assert attributes_of(made) == {"kernel": ("3", "5")}
    with pytest.raises(UserError, match="same attributes, got kernel, net and kernel"):
        attributes_of([*made, {"kernel": "3"}])
    with pytest.raises(UserError, match="differ in an attribute, got 2 that do not"):
        attributes_of([made[0], made[2]])
    with pytest.raises(UserError, match="got 0"):
        attributes_of([])


# --- what the network is given ----------------------------------------------------------------------------------------


def test_perturbations_are_encoded_exactly():
    clean = torch.tensor([0, 10, 200, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    x_adv = torch.tensor([20, 10, 180, 254], dtype=torch.uint8).view(1, 1, 2, 2)
    got = encoded(x_adv, clean, "delta", "8-bit")
    assert got.flatten().tolist() == [148, 128, 108, 127]
    floats = encoded(to_float(x_adv), to_float(clean), "delta", "none")
    assert torch.allclose(floats * 255 - 128, got.float() - 128, atol=1e-4)
    assert torch.equal(encoded(to_float(x_adv) + 0.001, to_float(clean), "delta", "8-bit"), got)
    assert torch.equal(encoded(x_adv, None, "image", "8-bit"), x_adv)


def test_scaled_perturbations_read_the_same_at_any_strength():
    rng = torch.Generator().manual_seed(0)
    clean, delta = torch.rand(5, 3, 8, 8, generator=rng), 0.1 * (torch.rand(5, 3, 8, 8, generator=rng) - 0.5)
    read = LargestIsOne()
    strong, weak = (read(encoded(clean + f * delta, clean, "delta", "none")) for f in (1, 0.1))
    assert torch.allclose(strong, weak, atol=1e-3)
    assert torch.allclose(strong.abs().amax((1, 2, 3)), torch.ones(5))
    assert (read(encoded(clean, clean, "delta", "8-bit").float() / 255).abs() < 0.1).all()


# --- what it learns ---------------------------------------------------------------------------------------------------


def test_each_head_reads_its_own_attribute():
    report = SMALL.study(planted(), run=RUN)
    assert {name: row[0] for name, row in report.judged.accuracy.items()} == {"way": 1.0, "sign": 1.0}
    test = planted(seed=1)
    parsed = report.parser.parse(test.x, test.clean[test.image], run=RUN)
    assert parsed.values == {"way": ("across", "down"), "sign": ("plus", "minus")}
    assert parsed.probabilities["way"].argmax(1).tolist() == (test.victim // 2).tolist()
    assert parsed.probabilities["sign"].argmax(1).tolist() == (test.victim % 2).tolist()


def test_shuffled_labels_give_chance(examples):
    rng = torch.Generator().manual_seed(0)
    found = []
    for _ in range(3):
        mixed = dataclasses.replace(examples, victim=examples.victim[torch.randperm(len(examples), generator=rng)])
        report = dataclasses.replace(SMALL, attacks=ATTACKS, batch_size=64).study(mixed, run=RUN)
        found += [row[0] for row in report.judged.accuracy.values()]
    assert abs(sum(found) / len(found) - 0.5) < 0.05


def test_a_victim_with_few_examples_weighs_as_much_as_the_others():
    """Perturbations that tell nothing: what is left to learn is how often each victim occurs, which is to count no."""
    blank = planted(counts=(160, 20, 20, 20), noise=1.0)
    parser = dataclasses.replace(SMALL, epochs=2, lr=0.02).learn(blank, run=RUN)
    test = planted(seed=1, noise=1.0)
    pooled = parser.parse(test.x, test.clean[test.image], run=RUN).pooled
    assert 0.35 < pooled["way"]["across"] < 0.65  # 0.82 of the examples
    assert 0.35 < pooled["sign"]["plus"] < 0.65


def test_the_parser_of_real_attacks_beats_chance_and_repeats_itself(victims, examples):
    method = ModelParsing(attacks=ATTACKS, width=8, epochs=8, batch_size=32)
    before = [weights_hash(v.model) for v in victims]
    report = method(victims, DIGITS.test, run=RUN)
    assert [weights_hash(v.model) for v in victims] == before
    value, low, high = report.judged.accuracy["kernel"]
    assert low <= value <= high
    assert low > report.judged.constant["kernel"] == 0.5
    assert weights_hash(report.parser.net) == weights_hash(method.study(examples, run=RUN).parser.net)
    assert report.kept[ATTACKS[0]] == {
        v.name: int((examples.of(ATTACKS[0]).victim == i).sum()) for i, v in enumerate(victims)
    }
    assert "parser names kernel rightly in" in report.sentence
    values = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert values["unseen_images"]["n"] == len(examples.halves(0.8)[1])
    assert len(report.listing()) == 4


def test_models_of_ones_own_are_told_apart_by_name(victims):
    models = {name: victim.model for name, victim in zip("ab", (victims[0], victims[2]), strict=True)}
    method = ModelParsing(attacks=ATTACKS[:1], width=8, epochs=2, batch_size=32)
    report = method.of_models(models, DIGITS.test.select(slice(0, 150)), run=RUN)
    assert report.parser.attributes == {"model": ("a", "b")}


def test_pruned_victims_bring_an_attribute_of_their_own(victims):
    from holdfast.compression import GlobalMagnitude

    pruned = GlobalMagnitude(sparsity=0.6)(victims[0].model, DIGITS.train, run=RUN)
    both = [
        Victim(model=model, attributes={**victims[0].attributes, "sparsity": sparsity})
        for model, sparsity in ((victims[0].model, "0"), (pruned, "0.6"))
    ]
    method = ModelParsing(attacks=ATTACKS[:1], width=4, epochs=1, batch_size=32)
    assert method(both, DIGITS.test, run=RUN).parser.attributes == {"sparsity": ("0", "0.6")}


# --- how it is judged -------------------------------------------------------------------------------------------------


class Says(torch.nn.Module):
    """Names `way` by the first pixel of the perturbation, and `sign` always plus."""

    def forward(self, x):
        up = (x[:, 0, 0, 0] > 0.5).float()
        return 9 * torch.stack([up, 1 - up, torch.ones_like(up), torch.zeros_like(up)], dim=1)


def test_every_victim_counts_the_same_in_the_accuracy():
    attributes = {"way": ("across", "down"), "sign": ("plus", "minus")}
    parser = Parser(
        net=Says(), attributes=attributes, image_shape=(1, 8, 8), width=1, reads="delta", scale="none",
        rounding="8-bit",
    )  # fmt: skip
    judged = judge(parser, planted(counts=(40, 10, 10, 20)), run=RUN)
    # The first pixel is up for plus: victims 0 (across, plus) and 3 (down, minus) are named rightly.
    assert judged.accuracy["way"][0] == judged.accuracy["sign"][0] == 0.5
    assert judged.confusion["way"].tolist() == [[40, 10], [10, 20]]
    assert judged.confusion["sign"].tolist() == [[50, 0], [30, 0]]
    assert judged.constant == {"way": 0.5, "sign": 0.5}
    three = planted(counts=(40, 10, 10, 20))
    three = three.select(three.victim != 1)
    assert judge(parser, three, run=RUN).constant == {"way": 2 / 3, "sign": 2 / 3}
    assert judge(parser, three, run=RUN).accuracy["way"][0] == pytest.approx(2 / 3)
    stranger = dataclasses.replace(three, victims=({"way": "askew", "sign": "plus"}, *three.victims[1:]))
    with pytest.raises(UserError, match="way must be one of across, down, got askew"):
        judge(parser, stranger, run=RUN)
    with pytest.raises(UserError, match="no examples"):
        judge(parser, three.select(three.victim > 9), run=RUN)


def test_an_incident_is_judged_by_its_mean_and_its_votes():
    parsed = Parsed(
        probabilities={"kernel": torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.45, 0.55]])}, values={"kernel": ("3", "5")}
    )
    assert parsed.pooled["kernel"]["3"] == pytest.approx(1.75 / 3)
    assert parsed.votes["kernel"] == pytest.approx({"3": 1 / 3, "5": 2 / 3})
    assert parsed.verdict == {"kernel": "3"}
    assert "kernel 3 (likeliest for 33%)" in parsed.sentence
    assert json.loads(json.dumps(parsed.to_json()))["n"] == len(parsed) == 3


# --- the parser on disk, and mistakes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parser():
    return SMALL.study(planted(), "stripes", run=RUN).parser


def test_a_parser_comes_back_from_its_file(parser, tmp_path):
    parser.save(tmp_path / "parser.safetensors")
    state = torch.random.get_rng_state()
    back = load_parser(tmp_path / "parser.safetensors")
    assert torch.equal(torch.random.get_rng_state(), state)
    for name in ("attributes", "image_shape", "width", "reads", "scale", "rounding", "images", "attacks", "accuracy"):
        assert getattr(back, name) == getattr(parser, name), name
    assert weights_hash(back.net) == weights_hash(parser.net)
    assert back.accuracy == {"way": 1.0, "sign": 1.0}
    test = planted(seed=2)
    for name, p in parser.parse(test.x, test.clean[test.image], run=RUN).probabilities.items():
        assert torch.allclose(back.parse(test.x, test.clean[test.image], run=RUN).probabilities[name], p, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 9}, "its weights do not fit"),
        ({"width": 65536, "image_shape": [1, 65536, 65536]}, "its weights do not fit"),
        ({"image_shape": [1, 8]}, "image_shape"),
        ({"width": 1e9}, "width"),
        ({"reads": "minds"}, "reads"),
        ({"attributes": {}}, "attributes"),
        ({"attributes": {"way": ["a", "b"], "sign": ["c", "d", "e"]}}, "its weights do not fit"),
        ({"attributes": {"way": ["\x1b[2J", "b"], "sign": ["c", "d"]}}, "cannot be printed"),
        ({"accuracy": {"way": float("inf")}}, "accuracy"),
        ({"more": 1}, "more"),
    ],
)
def test_a_file_that_lies_is_refused(parser, tmp_path, changes, said):
    path = tmp_path / "parser.safetensors"
    parser.save(path)
    file = read_weights(path)
    told = json.dumps({**json.loads(file.metadata["parser"]), **changes})
    save_tensors(file.tensors, path, {"parser": told})
    with pytest.raises(UserError, match=said) as caught:
        load_parser(path)
    assert "is not a parser" in str(caught.value)


def test_a_file_of_broken_numbers_or_of_something_else_is_refused(parser, tmp_path):
    path = tmp_path / "parser.safetensors"
    parser.save(path)
    file = read_weights(path)
    broken = {**file.tensors, "heads.bias": torch.full_like(file.tensors["heads.bias"], float("nan"))}
    save_tensors(broken, path, file.metadata)
    with pytest.raises(UserError, match="do not fit"):
        load_parser(path)
    save_tensors(file.tensors, path)
    with pytest.raises(UserError, match="does not say what its outputs mean"):
        load_parser(path)
    with pytest.raises(UserError, match="no such file"):
        load_parser(tmp_path / "nothing.safetensors")


def test_what_cannot_be_parsed_is_refused_in_one_sentence(parser):
    x = torch.rand(4, 1, 8, 8)
    with pytest.raises(UserError, match="it needs the clean images too"):
        parser.parse(x, run=RUN)
    with pytest.raises(UserError, match=r"takes images of shape \(1, 8, 8\), got attacked images of \(3, 8, 8\)"):
        parser.parse(x.repeat(1, 3, 1, 1), x, run=RUN)
    with pytest.raises(UserError, match="got 3 for 4"):
        parser.parse(x, x[:3], run=RUN)
    with pytest.raises(UserError, match="NaN"):
        parser.parse(x, x * torch.nan, run=RUN)
    with pytest.raises(UserError, match="Divide bytes by 255"):
        parser.parse(x * 255, x, run=RUN)
    with pytest.raises(UserError, match="no images"):
        parser.parse(x[:0], x[:0], run=RUN)


def test_victims_and_settings_that_cannot_be_are_refused(victims):
    few = DIGITS.test.select(slice(0, 30))
    with pytest.raises(UserError, match="no attack fools the victim 3-relu on the first images"):
        ModelParsing(attacks=("fgsm(eps=0)",))(victims, few, run=RUN)
    with pytest.raises(UserError, match="no images to attack"):
        ModelParsing()(victims, few.select(slice(0, 0)), run=RUN)
    with pytest.raises(UserError, match="differ in an attribute"):
        ModelParsing()(victims[:1], few, run=RUN)
    with pytest.raises(UserError, match="scale must be 'none' where the image is read"):
        ModelParsing(reads="image", scale="max")
    with pytest.raises(UserError, match="attacks must be different attacks"):
        ModelParsing(attacks=("pgd", "pgd"))
    with pytest.raises(UserError, match="'pdg' is unknown"):
        ModelParsing(attacks=("pdg",))
    with pytest.raises(UserError, match="a kernel must be an odd whole number, got 4"):
        train_victims(DIGITS.train, kernels=(4,), run=RUN)
    with pytest.raises(UserError, match="activation 'rely' is unknown"):
        train_victims(DIGITS.train, activations=("rely",), run=RUN)
    wrong = Images(x=few.x, y=(few.y + 1) % 10, classes=few.classes, name="mislabelled")
    net = VictimNet(num_classes=10, image_shape=(1, 8, 8), normalize=torch.nn.Identity(), kernel=3, activation="elu")
    with torch.no_grad():
        net.fc.weight.zero_()
        net.fc.bias.copy_(torch.arange(10.0))
    none = wrong.select(wrong.y != 9)
    with pytest.raises(UserError, match="no victim classifies an image of mislabelled rightly"):
        attack_victims([Victim(model=net, attributes={"a": "b"})], ATTACKS, none, run=RUN)

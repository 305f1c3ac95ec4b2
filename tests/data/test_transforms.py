import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast import catalog
from holdfast.data import Images, LabelNoise, LongTail, Relabel, Subset
from holdfast.errors import UserError
from holdfast.run import Run

RUN = Run(seed=3)


def toy(y, classes=None):
    """Images that each show their own row number, so that mixing rows up cannot go unseen."""
    y = torch.as_tensor(y, dtype=torch.int64)
    x = torch.arange(len(y)).view(-1, 1, 1, 1).expand(-1, 1, 4, 4) / max(1, len(y))
    names = classes or tuple("abcdefghij"[: int(y.max()) + 1])
    return Images(x=x.contiguous(), y=y, classes=names, columns={"row": torch.arange(len(y))}, name="toy")


labels = st.lists(st.integers(0, 4), min_size=5, max_size=80)
transforms = st.sampled_from(
    [
        LongTail(rho=10),
        LongTail(rho=4, profile="step"),
        LabelNoise(rate=0.3),
        LabelNoise(rate=0.5, type="asymmetric"),
        Subset(fraction=0.5),
        Subset(n=4, pick="first"),
        Relabel(mapping=("a->z", "b->z")),
    ]
)


@given(y=labels, transform=transforms)
def test_every_transform_keeps_pixels_with_their_columns_is_reproducible_and_leaves_its_input(y, transform):
    images = toy([*y, 0, 1, 2, 3, 4])
    before = images.fingerprint()
    one, two = transform(images, run=RUN), transform(images, run=RUN)
    assert images.fingerprint() == before
    assert one.fingerprint() == two.fingerprint()
    assert torch.allclose(one.x[:, 0, 0, 0] * len(images), one.columns["row"].float(), atol=1e-3)
    assert torch.equal(one.columns["row"], one.columns["row"].sort().values)
    built = catalog.build(str(transform))
    assert built == transform


@pytest.mark.parametrize(
    ("rho", "profile", "expected"),
    [
        (100, "exp", [100, 59, 35, 21, 12, 7, 4, 2, 1, 1]),
        (10, "step", [100] * 5 + [10] * 5),
        (1, "exp", [100] * 10),
    ],
)
def test_class_sizes_follow_the_published_formula(rho, profile, expected):
    images = toy(torch.arange(1000) % 10)
    sizes = torch.bincount(LongTail(rho=rho, profile=profile)(images, run=RUN).y).tolist()
    assert sizes == expected


def test_the_long_tail_of_cifar10_has_the_sizes_of_the_literature():
    # 5,000 images per class at rho = 100 leave 12,406 images in all, the known size of CIFAR-10-LT.
    assert sum(LongTail(rho=100).sizes(5000, 10)) == 12406


@given(rho=st.floats(1, 1000), classes=st.integers(1, 60), n_max=st.integers(1, 3000))
def test_a_long_tail_never_rises_never_empties_a_class_and_spans_rho(rho, classes, n_max):
    sizes = LongTail(rho=rho).sizes(n_max, classes)
    assert sizes[0] == n_max
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] >= 1
    if classes > 1:
        assert sizes[-1] == max(1, int(n_max / rho + 1e-9))


@given(rate=st.sampled_from([0.0, 0.2, 0.5, 1.0]), kind=st.sampled_from(["symmetric", "asymmetric"]), y=labels)
def test_exactly_the_given_share_of_every_class_is_wrong_and_the_truth_is_kept(rate, kind, y):
    images = toy([*y, 0, 1, 2, 3, 4])
    noisy = LabelNoise(rate=rate, type=kind)(images, run=RUN)
    assert torch.equal(noisy.columns["clean_label"], images.y)
    for k in range(5):
        members = images.y == k
        wrong = noisy.y[members] != k
        assert int(wrong.sum()) == round(rate * int(members.sum()))
        if kind == "asymmetric":
            assert set(noisy.y[members][wrong].tolist()) <= {(k + 1) % 5}


def test_symmetric_noise_reaches_all_other_classes_alike():
    noisy = LabelNoise(rate=1.0)(toy(torch.zeros(4000, dtype=torch.int64), tuple("abcde")), run=RUN)
    counts = torch.bincount(noisy.y, minlength=5)
    assert counts[0] == 0
    assert counts[1:].min() > 900


def test_noise_on_noise_keeps_the_first_truth():
    images = toy(torch.arange(50) % 5)
    twice = LabelNoise(rate=0.4)(LabelNoise(rate=0.4)(images, run=RUN), run=RUN.child("again"))
    assert torch.equal(twice.columns["clean_label"], images.y)


def test_one_class_cannot_be_mislabelled():
    with pytest.raises(UserError, match="at least 2 classes"):
        LabelNoise()(toy([0, 0]), run=RUN)


@given(y=labels, n=st.integers(1, 40))
def test_a_subset_has_the_size_asked_for_and_the_proportions_of_the_whole(y, n):
    images = toy(y)
    if n > len(images):
        with pytest.raises(UserError, match=f"n must be at most {len(images)}"):
            Subset(n=n)(images, run=RUN)
        return
    for pick in ("random", "first"):
        chosen = Subset(n=n, pick=pick)(images, run=RUN)
        assert len(chosen) == n
        for k in range(images.num_classes):
            assert abs(int((chosen.y == k).sum()) - n * int((images.y == k).sum()) / len(images)) < 1


def test_the_first_images_of_each_class_are_picked_on_request():
    chosen = Subset(n=4, pick="first")(toy([0, 0, 0, 0, 1, 1, 1, 1]), run=RUN)
    assert chosen.columns["row"].tolist() == [0, 1, 4, 5]


def test_a_subset_needs_one_of_n_and_fraction():
    for fields in ({}, {"n": 3, "fraction": 0.5}):
        with pytest.raises(UserError, match="give either n or fraction"):
            Subset(**fields)


def test_classes_are_kept_dropped_renamed_and_merged():
    images = toy([0, 1, 2, 3, 0, 1, 2, 3], ("cat", "dog", "ship", "truck"))
    kept = Relabel(keep=("truck", "cat"))(images, run=RUN)
    assert kept.classes == ("cat", "truck")
    assert kept.y.tolist() == [0, 1, 0, 1]
    assert kept.columns["original_label"].tolist() == [0, 3, 0, 3]
    dropped = Relabel(drop=("cat",), mapping=("ship->vehicle", "truck -> vehicle"))(images, run=RUN)
    assert dropped.classes == ("dog", "vehicle")
    assert dropped.y.tolist() == [0, 1, 1, 0, 1, 1]


def test_classes_may_be_numbers_in_a_spec():
    images = toy(torch.arange(20) % 10, tuple(map(str, range(10))))
    assert catalog.build("relabel(keep=[3, 5])")(images, run=RUN).classes == ("3", "5")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep": ("cta",)}, "the class 'cta' is unknown. Did you mean 'cat'"),
        ({"drop": ("x",)}, "'x' is unknown. It takes one of: cat, dog"),
        ({"mapping": ("emu->bird",)}, "'emu' is unknown"),
        ({"mapping": ("cat=bird",)}, "entries such as 'cat->animal', got 'cat=bird'"),
        ({"mapping": ("cat->",)}, "entries such as"),
        ({"mapping": ("cat->a", "cat->b")}, "renames 'cat' twice"),
        ({"keep": ("cat",), "drop": ("dog",)}, "give either keep or drop"),
        ({"drop": ("cat", "dog")}, "no image of toy is left"),
    ],
)
def test_a_relabelling_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Relabel(**fields)(toy([0, 1], ("cat", "dog")), run=RUN)

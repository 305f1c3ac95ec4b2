import pytest
import torch
from torch import nn

from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.models import extract
from holdfast.ood import KNN, FittedDetector, fit_detectors
from holdfast.run import Run


class Counting(nn.Module):
    """A model that counts the images it sees."""

    def __init__(self, head=True):
        super().__init__()
        self.body = nn.Linear(48, 12)
        self.head = nn.Linear(12, 4)
        self.headless = not head
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        h = self.body(x.flatten(1)).relu()
        return self.head(h).tanh() if self.headless else self.head(h)


@pytest.fixture(scope="module")
def images():
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(120, 3, 4, 4, generator=rng)
    return Images(x=x, y=torch.randint(4, (120,), generator=rng), classes=tuple("abcd"))


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return Counting()


ALL = ["msp", "max-logit", "energy(temperature=2)", "knn(k=5)", "knn(k=9)"]


def test_any_number_of_detectors_costs_one_pass(model, images):
    run = Run(batch_size=50)
    extract(model, images, run=run)
    one_pass, model.seen = model.seen, 0
    fitted = fit_detectors(ALL, model, images, run=run)
    assert list(fitted) == [*ALL[:2], "energy(temperature=2.0)", *ALL[3:]]
    assert model.seen <= one_pass + 2  # two images more to find the head


def test_detectors_without_a_fit_cost_no_pass(model):
    fitted = fit_detectors(ALL[:3], model, None, run=Run())
    assert len(fitted) == 3
    assert model.seen == 0


def test_a_detector_that_learns_needs_training_images(model):
    with pytest.raises(UserError, match=r"knn\(k=5\) learns from training images, but there are none"):
        fit_detectors(["knn(k=5)"], model, None, run=Run())


def test_a_missing_feature_is_named(images):
    with pytest.raises(UserError, match="reads penultimate features, but the model ends in no linear layer"):
        fit_detectors([KNN(k=5)], Counting(head=False), images, run=Run())


def test_a_saved_detector_scores_the_same(model, images, tmp_path):
    run = Run()
    features = extract(model, images, run=run)
    for name, detector in fit_detectors(ALL, model, images, run=run).items():
        detector.save(tmp_path / "detector.safetensors")
        loaded = FittedDetector.load(tmp_path / "detector.safetensors")
        assert str(loaded.method) == name
        assert torch.equal(loaded.score(features), detector.score(features))


def test_a_file_that_holds_no_detector_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match="cannot be read as a fitted detector"):
        FittedDetector.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read as a fitted detector"):
        FittedDetector.load(path)
    from safetensors.torch import save_file

    save_file({"bank": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="holds no fitted detector"):
        FittedDetector.load(path)


def test_a_fitted_detector_does_not_change_with_the_features_it_learnt_from(model, images):
    features = extract(model, images, run=Run())
    fitted = fit_detectors([KNN(k=5, normalise=False)], model, images, run=Run())["knn(k=5, normalise=false)"]
    before = fitted.score(features)
    with pytest.raises(TypeError):
        fitted.state["bank"] = torch.zeros(3)
    features.penultimate.mul_(1)
    assert torch.equal(fitted.score(features), before)

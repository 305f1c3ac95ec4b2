import torch
import torch.nn.functional as F

from holdfast.data import load_data
from holdfast.evasion import FGSM, PGD
from holdfast.evasion.adaptive import softened
from holdfast.evasion.masking.gradients import zero_gradients
from holdfast.hardening import DefensiveDistillation, distil
from holdfast.hardening.defensive_distillation import distillation_loss
from holdfast.models import build_model, load_weights, predict
from holdfast.run import Run
from holdfast.training import SGD, CrossEntropy, Recipe, Step, fit, train


def batch(n=16, classes=5):
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(n, classes, generator=generator), torch.randint(classes, (n,), generator=generator)


def test_at_temperature_one_the_teachers_loss_is_cross_entropy_bit_for_bit():
    z, y = batch()
    model = torch.nn.Identity()
    assert torch.equal(DefensiveDistillation(temperature=1)(model, z, y, Step()), CrossEntropy()(model, z, y, Step()))


def test_a_sure_teacher_at_temperature_one_is_the_labels():
    z, y = batch()
    q = F.one_hot(y, 5).float()
    assert torch.allclose(distillation_loss(z, q, y, temperature=1), F.cross_entropy(z, y), rtol=1e-6)
    assert torch.allclose(distillation_loss(z, q, y, temperature=1, soft=0.3), F.cross_entropy(z, y), rtol=1e-6)


def test_the_hybrid_is_the_weighted_sum_of_its_parts():
    z, y = batch()
    t, q = 4.0, batch()[0].flip(0).softmax(1)
    log_p = (z / t).log_softmax(1)
    divergence = (q * (q.log() - log_p)).sum(1).mean()
    expected = 0.9 * 16 * divergence + 0.1 * F.cross_entropy(z, y)
    assert torch.allclose(distillation_loss(z, q, y, temperature=t, soft=0.9), expected, rtol=1e-5)


def test_the_gain_gives_logits_gradients_of_the_usual_size():
    z, y = batch()
    z = (0.01 * z).requires_grad_()
    hot, usual = (
        torch.autograd.grad(DefensiveDistillation(temperature=t)(torch.nn.Identity(), z, y, Step()), z)[0]
        for t in (100, 1)
    )
    assert torch.allclose(hot, usual, atol=2e-3)
    assert DefensiveDistillation(temperature=100, gain=1).factor == 1


def test_the_distilled_network_hides_its_gradients_and_resists_nothing(tmp_path):
    data, run = load_data("digits"), Run()
    model = build_model("convnet", num_classes=10, image_shape=data.shape, run=run)
    optimizer = SGD(lr=0.05, momentum=0.9, nesterov=True)
    result = distil(model, data.train, epochs=10, batch_size=64, optimizer=optimizer, run=run.but(out=tmp_path))
    assert load_weights(build_model("convnet", num_classes=10, image_shape=data.shape, run=run),
                        tmp_path / "teacher" / "weights.safetensors") is not model  # fmt: skip
    net = result.model
    right = predict(net, data.test, run=run).argmax(1) == data.test.y
    assert right.float().mean() > 0.8
    x, y = next(data.test.select(right.nonzero().flatten()[:100]).batches(100))
    assert zero_gradients(net, x, y, run=run).float().mean() > 0.3
    assert not zero_gradients(softened(net, 100), x, y, run=run).any()
    assert FGSM(eps=0.15).run(net, x, y, run=run).robust_accuracy > 0.5
    assert FGSM(eps=0.15).run(softened(net, 100), x, y, run=run).robust_accuracy < 0.5
    assert PGD(eps=0.15, loss="margin").run(net, x, y, run=run).robust_accuracy < 0.3


def test_recipes_train_a_teacher_and_then_its_student(tmp_path):
    shared = {"model": "mlp", "data": "digits", "epochs": 1, "optimizer": "sgd(lr=0.05)", "precision": "fp32"}
    teacher = Recipe(**shared, objective="defensive-distillation(temperature=20)")
    train(teacher, Run(out=tmp_path / "teacher"))
    weights = tmp_path / "teacher" / "weights.safetensors"
    student = Recipe(**shared, objective=f"defensive-distillation(temperature=20, teacher='{weights}')")
    card = train(student, Run(out=tmp_path / "student"))
    assert card["recipe"]["objective"] == student.objective


def test_both_ways_to_the_student_are_one(tmp_path):
    data, run = load_data("digits"), Run()
    images = data.train.select(slice(0, 200))
    made = [build_model("mlp", num_classes=10, image_shape=data.shape, run=run) for _ in range(2)]
    method = DefensiveDistillation(temperature=10)
    by_function = distil(made[0], images, epochs=1, method=method, run=run.but(out=tmp_path)).model
    path = tmp_path / "teacher" / "weights.safetensors"
    objective = DefensiveDistillation(temperature=10, teacher=str(path))
    by_objective = fit(made[1], images, epochs=1, objective=objective, run=run.child("student")).model
    for a, b in zip(by_function.parameters(), by_objective.parameters(), strict=True):
        assert torch.equal(a, b)

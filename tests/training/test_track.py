import sys
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest

from holdfast.errors import UserError
from holdfast.run import Run
from holdfast.training import fit


class Client:
    """The part of MLflow's client that is used, writing down what it is told."""

    log: ClassVar[list] = []

    def __init__(self, tracking_uri=None):
        self.log.append(("uri", tracking_uri))

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        self.log.append(("experiment", name))
        return "1"

    def create_run(self, experiment):
        return SimpleNamespace(info=SimpleNamespace(run_id="r"))

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.log.append((name, *args, kwargs))


@pytest.fixture
def mlflow(monkeypatch):
    Client.log = []
    tracking, exceptions = ModuleType("mlflow.tracking"), ModuleType("mlflow.exceptions")
    tracking.MlflowClient, exceptions.MlflowException = Client, ValueError
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.tracking", tracking)
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", exceptions)
    return Client


def test_every_epoch_is_logged_to_one_run(noise, linear, mlflow):
    result = fit(linear(), noise, epochs=2, callbacks=["track(experiment=mine, uri='http://here')"], run=Run())
    assert ("uri", "http://here") in mlflow.log
    assert ("experiment", "mine") in mlflow.log
    losses = [entry for entry in mlflow.log if entry[:3] == ("log_metric", "r", "train_loss")]
    assert [(entry[3], entry[4]["step"]) for entry in losses] == [
        (row["train_loss"], row["epoch"]) for row in result.history
    ]
    assert ("log_param", "r", "batch_size", "128", {}) in mlflow.log
    assert mlflow.log[-1] == ("set_terminated", "r", {})


def test_a_missing_mlflow_is_told_with_the_remedy(noise, linear, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match=r"pip install 'holdfast\[track\]'"):
        fit(linear(), noise, epochs=1, callbacks=["track"], run=Run())

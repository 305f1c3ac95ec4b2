"""Track: send the metrics of a training to MLflow, as it goes.

A resumed training goes on with the same MLflow run. Needs ``pip install 'holdfast[track]'``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from holdfast.errors import UserError
from holdfast.methods import Callback
from holdfast.training.state import State

__all__ = ["Track"]

_RUN = "track.run"


@dataclass(frozen=True, kw_only=True)
class Track(Callback, id="track", title="MLflow tracking"):
    """Log every epoch's metrics to MLflow.

    Args:
        experiment: the name runs are filed under; it is created when it does not exist.
        uri: of the tracking server or folder; ``none`` is MLflow's own setting (``MLFLOW_TRACKING_URI``).
    """

    experiment: str = "holdfast"
    uri: str | None = None

    def on_start(self, state: State) -> None:
        """Open a run, or the one that a checkpoint remembers, and note how the training runs."""
        if not state.main_process:
            return
        client = self._client()
        if _RUN not in state.memory:
            found = client.get_experiment_by_name(self.experiment)
            experiment = found.experiment_id if found is not None else client.create_experiment(self.experiment)
            state.memory[_RUN] = client.create_run(experiment).info.run_id
            for name, value in state.settings.items():
                client.log_param(state.memory[_RUN], name.replace(" ", "_"), value)
        client.update_run(state.memory[_RUN], status="RUNNING")

    def on_epoch(self, state: State) -> None:
        """Log the epoch's metrics."""
        if state.main_process:
            client = self._client()
            for name, value in state.metrics.items():
                client.log_metric(state.memory[_RUN], name, value, step=state.epoch + 1)

    def on_end(self, state: State) -> None:
        """Close the run."""
        if state.main_process:
            self._client().set_terminated(state.memory[_RUN])

    def _client(self) -> Any:
        try:
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise UserError("track: MLflow is not installed; run pip install 'holdfast[track]'.") from None
        try:
            return MlflowClient(tracking_uri=self.uri)
        except MlflowException as error:
            raise UserError(f"track: MLflow does not take the uri {self.uri!r}: {error}") from None

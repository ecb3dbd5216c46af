"""Where runs show their metrics. Add a module here and register it below."""

from fangyan.config import OneOf
from fangyan.trackers.mlflow import MLflow
from fangyan.trackers.tensorboard import TensorBoard
from fangyan.trackers.wandb import Wandb

TRACKERS = OneOf(TensorBoard, Wandb, MLflow)

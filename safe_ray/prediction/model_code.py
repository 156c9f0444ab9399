"""The code of a registered model, which MLflow keeps as a file and runs when it loads the model."""

from mlflow.models import set_model

from safe_ray.prediction.served import HeadModel

set_model(HeadModel())

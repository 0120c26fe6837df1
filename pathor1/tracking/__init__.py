"""Where a run's numbers go: its folder, TensorBoard, Ray's metrics, Weights & Biases, MLflow."""

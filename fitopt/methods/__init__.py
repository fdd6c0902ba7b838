"""What makes one step: optax optimizers, minimisers, least-squares solvers."""

"""Each of optax' learning-rate schedules, for twenty steps of gradient descent."""

import optax

_BOUNDARIES = {5: 0.5, 12: 0.2}

SCHEDULES = {
    "constant_schedule": lambda: optax.constant_schedule(0.1),
    "cosine_decay_schedule": lambda: optax.cosine_decay_schedule(0.1, 15, alpha=0.1, exponent=2.0),
    "cosine_onecycle_schedule": lambda: optax.cosine_onecycle_schedule(20, 0.2),
    "exponential_decay": lambda: optax.exponential_decay(0.1, 5, 0.5, 3, staircase=True),
    "join_schedules": lambda: optax.join_schedules(
        [optax.constant_schedule(0.05), optax.linear_schedule(0.2, 0.0, 10)], [6]
    ),
    "linear_onecycle_schedule": lambda: optax.linear_onecycle_schedule(20, 0.2),
    "linear_schedule": lambda: optax.linear_schedule(0.1, 0.01, 10, transition_begin=4),
    "piecewise_constant_schedule": lambda: optax.piecewise_constant_schedule(0.1, _BOUNDARIES),
    "piecewise_interpolate_schedule": lambda: optax.piecewise_interpolate_schedule(
        "cosine", 0.1, _BOUNDARIES
    ),
    "polynomial_schedule": lambda: optax.polynomial_schedule(0.1, 0.01, 2, 15),
    "sgdr_schedule": lambda: optax.sgdr_schedule(
        [
            dict(init_value=0.0, peak_value=peak, decay_steps=8, warmup_steps=2, end_value=0.01)
            for peak in (0.1, 0.05, 0.02)
        ]
    ),
    "warmup_constant_schedule": lambda: optax.warmup_constant_schedule(0.0, 0.1, 5),
    "warmup_cosine_decay_schedule": lambda: optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 18),
    "warmup_exponential_decay_schedule": lambda: optax.warmup_exponential_decay_schedule(
        0.0, 0.1, 5, 4, 0.5
    ),
}

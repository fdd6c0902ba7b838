"""The lynx-hare fit from many starts, in one process or in several; see docs/many.md."""

import argparse

import jax
import optax

import fitopt
from fitopt import demo
from fitopt.callbacks import Checkpoint, EarlyStopping, KeepBest


def main() -> None:
    """Fit, and let the first process tell what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=5000, help="of a fit, at most")
    parser.add_argument(
        "--directory", default="starts", help="of the checkpoints, which all processes see"
    )
    parser.add_argument("--address", help="of the first process; without it that of the cluster, if any")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--index", type=int)
    options = parser.parse_args()
    if options.processes != 1:
        jax.distributed.initialize(options.address, options.processes, options.index)
    jax.config.update("jax_enable_x64", True)
    optimizer = fitopt.OptaxOptimizer(
        lambda parameters: demo.negative_log_likelihood(parameters, demo.load_pelts()),
        optax.adam(0.05),
        [EarlyStopping(200, 1e-9), KeepBest(), Checkpoint(options.directory, seconds=60)],
    )
    states = fitopt.starts(demo.make_state(), options.starts)
    fits = optimizer.run_many(states, max_steps=options.steps, resume_from=options.directory)
    if jax.process_index() == 0:
        print(fits, demo.tell_starts(fits), sep="\n")
        fits.save("starts.npz")


if __name__ == "__main__":
    main()

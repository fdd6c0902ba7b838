"""What is said of how a fit has ended."""

from collections.abc import Sequence

import numpy as np

from ..callback import Callback
from ..methods.method import StopReason


def reached(max_steps: int) -> StopReason:
    """That all steps are made."""
    return StopReason(f"reached max_steps={max_steps}")


def out_of_batches(step: int) -> StopReason:
    """That an iterable of batches has ended."""
    return StopReason(f"the batches have ended (after step {step})", is_final=True)


def at_step(
    step: int, sentence: str, converged: bool = False, is_final: bool = True
) -> StopReason:
    """Why a fit was ended by its step number `step`."""
    return StopReason(f"{sentence} (at step {step})", converged, is_final)


def of_stopper(
    stopper: int, traced: Sequence[Callback], own: Sequence[StopReason], step: int
) -> StopReason:
    """That of a traced callback; or, counted on, one of the method's own."""
    if stopper >= len(traced):
        reason = own[stopper - len(traced)]
        return at_step(step, reason.sentence, reason.converged)
    callback = traced[stopper]
    return at_step(step, callback.stop_reason(), callback.looks_for_convergence)


def not_finite(names: Sequence[str], step: int, loss: float, finite: Sequence[bool]) -> str:
    """That step number `step` went wrong; `finite` tells of each Parameter's gradient whether it is."""
    what = "the update" if np.isfinite(loss) else f"the loss ({loss})"
    bad = [name for name, ok in zip(names, finite, strict=True) if not ok]
    gradients = f"not finite: the gradients of {', '.join(bad)}" if bad else "all gradients finite"
    return f"{what} was not finite at step {step} ({gradients}); returned the last good state"


def stalled(reason: StopReason, names: Sequence[str]) -> StopReason:
    """What to say where a fit would go on if a bound did not hold it."""
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return StopReason(
        f"stalled at the bounds of {shown}, from which the loss falls into the allowed region; start "
        f"further inside, or take a method that keeps bounds itself. {reason.sentence}"
    )

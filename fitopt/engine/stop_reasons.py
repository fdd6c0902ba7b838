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


def at_step(step: int, reason: StopReason) -> StopReason:
    """Why a fit was ended by its step number `step`."""
    return reason._replace(sentence=f"{reason.sentence} (at step {step})")


def of_stoppers(traced: Sequence[Callback], own: Sequence[StopReason]) -> list[StopReason]:
    """Those of traced callbacks, and after them the method's own."""
    asked = [StopReason(one.stop_reason(), one.looks_for_convergence) for one in traced]
    return [*asked, *own]


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

"""What each public name of optax is to fitopt."""

import functools
import inspect
import textwrap
import typing
import warnings

import optax

from .losses import INSIDE, LOSSES
from .projections import PROJECTIONS
from .schedules import SCHEDULES
from .transformations import SECOND_LOOK, TRANSFORMATIONS

LOWEST, NEWEST = "0.2.6", "0.2.8"  # the releases of optax that the table was checked against

_PARTS = (
    *("contrib", "transforms", "schedules", "losses", "projections", "perturbations"),
    *("second_order", "assignment", "microbatching", "experimental.aggregating"),
)
# Modules that hold no transformation: arithmetic with pytrees, and (up to 0.2.6) gradient estimators.
_ARITHMETIC = {"tree", "tree_utils", "monte_carlo"}

# What came after the lowest release: names, and whole modules.
_SINCE = {
    "0.2.7": """
        signum generalized_kl_divergence monitor measure_with_ema microbatch
        contrib.galore contrib.scale_by_galore contrib.GaLoreDimensionNumbers
        contrib.madgrad contrib.scale_by_madgrad microbatching experimental
    """
}
# What is broken in older releases: since when it works.
MENDED = {"scale_by_distance_over_gradients": "0.2.7"}

# What runs in a way told here, and in full in `options.py`; tests fit with each.
OPTIONS = {
    "contrib.schedule_free contrib.schedule_free_adamw contrib.schedule_free_sgd": (
        "`run` returns the evaluation parameters, and their loss as `final_loss`"
    ),
    "lookahead": (
        "moves pairs of parameters: take `fitopt.optimizers.lookahead`, the same method on single ones;"
        " `run` returns the slow weights"
    ),
    "contrib.dpsgd contrib.differentially_private_aggregate": (
        "want the gradient of each example: give an `update` that computes them,"
        " `jax.vmap(jax.grad(example_loss), (None, 0))(params, examples)`"
    ),
    "experimental.aggregating.process experimental.aggregating.Aggregator"
    " experimental.aggregating.accumulate_avg_updates"
    " experimental.aggregating.average_per_element_updates"
    " experimental.aggregating.average_incrementally_updates"
    " experimental.aggregating.add_mean_variance_to_opt"
    " experimental.aggregating.get_per_element_mean_and_sum_sq_diff_grads"
    " experimental.aggregating.track_per_element_mean_and_variance_with_ema": (
        "wants the gradient of each example, likewise; its `process` refuses `value`:"
        " give `optax.GradientTransformation(process.init, process.update)`"
    ),
    "monitor measure_with_ema": (
        "begin with less in their state than they end with, which no compiled loop can carry: give an"
        " `init` that is complete, or take `optax.snapshot`, which is, or a callback"
    ),
}

# No optimizers, and nothing that one could hand to `run`.
HELPERS = {
    "types": """
        MaskOrFn OptState Params ScalarOrSchedule Schedule ShouldSkipUpdateFunction TransformInitFn
        TransformUpdateExtraArgsFn TransformUpdateFn Updates schedules.StatefulSchedule
        transforms.ConditionFn
        experimental.aggregating.AggregatedUpdates experimental.aggregating.AggregatorUpdateFn
        experimental.aggregating.MaybeAxis experimental.aggregating.PerElementUpdates
    """,
    "parts of states and of parameters": """
        ApplyEvery LookaheadParams MaskedNode ZoomLinesearchInfo
        contrib.GaLoreDimensionNumbers contrib.MuonDimensionNumbers
    """,
    "what `run` does by itself": """
        apply_updates init_empty_state value_and_grad_from_state contrib.schedule_free_eval_params
    """,
    "arithmetic that optimizers are made of": """
        bias_correction incremental_update per_example_global_norm_clip per_example_layer_norm_clip
        periodic_update safe_increment safe_int32_increment tree_map_params update_infinity_moment
        update_moment update_moment_per_elem_norm transforms.unitwise_clip transforms.unitwise_norm
        experimental.aggregating.get_batch_size_from_per_elt_updates
        experimental.aggregating.get_unbiased_mean_and_variance_ema
    """,
    "solvers of other problems": """
        matrix_inverse_pth_root nnls power_iteration
        assignment.base_hungarian_algorithm assignment.hungarian_algorithm
    """,
    "derivatives of a kind": """
        second_order.fisher_diag second_order.hessian_diag second_order.hvp
        microbatching.AccumulationType microbatching.Accumulator microbatching.micro_grad
        microbatching.micro_vmap microbatching.reshape_batch_axis
    """,
}

TABLE = [
    *TRANSFORMATIONS,
    *SECOND_LOOK,
    *SCHEDULES,
    *PROJECTIONS,
    *LOSSES,
    *INSIDE,
    *(name for names in OPTIONS for name in names.split()),
    *(name for names in HELPERS.values() for name in names.split()),
]


def _public(module):
    """The public names of a module, but its own modules, what it takes from typing, and states."""
    return {
        name: x
        for name, x in vars(module).items()
        if not name.startswith("_")
        and not inspect.ismodule(x)
        and getattr(typing, name, None) is not x
        and not (inspect.isclass(x) and name.endswith("State"))
    }


def submodules():
    """The public modules in optax."""
    return {name for name, x in vars(optax).items() if inspect.ismodule(x) and not name.startswith("_")}


def known_submodules():
    """Those that the table is about."""
    return {part.partition(".")[0] for part in _PARTS} | _ARITHMETIC


def exported():
    """Each public name of the installed optax, once: the short one where there are two for the same."""
    short = _public(optax)
    found = dict(short)
    for part in _PARTS:
        try:
            module = functools.reduce(getattr, part.split("."), optax)
        except AttributeError:
            continue  # an older optax
        for name, x in _public(module).items():
            if short.get(name) is not x:
                found[f"{part}.{name}"] = x
    for name in {*optax.__all__} - {*vars(optax)}:  # old ones that warn when they are used
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            x = getattr(optax, name)
        if x not in found.values() and not name.endswith("State"):
            found[name] = x
    return found


def version(text):
    """To compare releases by."""
    return tuple(int(part) for part in text.split(".")[:3])


def since(name):
    """The release of optax that first had it, of those that fitopt supports."""
    for release, names in _SINCE.items():
        if {name, name.partition(".")[0]} & {*names.split()}:
            return release
    return LOWEST


def markdown():
    """The table as docs/all_of_optax.md shows it."""
    runs = len(TRANSFORMATIONS) + len(SECOND_LOOK)
    rest = sum(len(names.split()) for names in HELPERS.values())
    above = (
        f"Of what optax {LOWEST} to {NEWEST} exports, {runs} optimizers, transformations and wrappers,"
        f" {len(SCHEDULES)} schedules, {len(LOSSES)} losses and {len(INSIDE)} functions for use in one"
        " run as they are; each is tested, the optimizers to the last bit against a `lax.scan` by hand."
        " Some others need a word (and `tests/all_of_optax/options.py` has it in full):"
    )
    below = f"The remaining {rest} names are no optimizers: {', '.join(HELPERS)}."
    projections = (
        "| the projections | `optax.chain(optimizer, optax.stateless(f))` keeps the parameters in the"
        " set, where `f(updates, params)` is what leads from `params` to the projection of"
        " `params + updates` |"
    )
    rows = ["| in optax | through `run` |", "|---|---|", projections]
    for names, how in OPTIONS.items():
        # of the experimental modules, the module will do
        short = [name.rpartition(".")[0] if "experimental" in name else name for name in names.split()]
        rows.append(f"| {', '.join(f'`{name}`' for name in dict.fromkeys(short))} | {how} |")
    return "\n".join([textwrap.fill(above, 110), "", *rows, "", textwrap.fill(below, 110)])

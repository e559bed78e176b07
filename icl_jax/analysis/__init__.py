"""The papers' measurements, one file each: pure functions of arrays.

The functions below work on their own, in a notebook, on parameters from `icl_jax.open_run(path).params(step)`; each
file holds more. `icl_jax.measures.table` lists what `icl-jax analyze` takes over a whole run.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from icl_jax.analysis.over_members import analyze_over_members as analyze_over_members
    from icl_jax.analysis.run_measurements import analyze as analyze
    from icl_jax.analysis.run_measurements import analyze_members as analyze_members
    from icl_jax.analysis.run_measurements import make_context as make_context
    from icl_jax.maths.activations import patterns as patterns
    from icl_jax.maths.factored_matrix import FactoredMatrix as FactoredMatrix
    from icl_jax.maths.head_scores import repeated_tokens as repeated_tokens
    from icl_jax.maths.logit_attribution import direct_logit_attribution as direct_logit_attribution
    from icl_jax.measures.ablation import ablate as ablate
    from icl_jax.measures.activation_patching import activation_patching as activation_patching
    from icl_jax.measures.attribution_patching import attribution_patching as attribution_patching
    from icl_jax.measures.attribution_patching import path_attribution as path_attribution
    from icl_jax.measures.composition import composition_scores as composition_scores
    from icl_jax.measures.copying import copying_eigenvalue as copying_eigenvalue
    from icl_jax.measures.copying import logit_copying as logit_copying
    from icl_jax.measures.head_scores import duplicate_token as duplicate_token
    from icl_jax.measures.head_scores import induction_stripe as induction_stripe
    from icl_jax.measures.head_scores import prefix_matching as prefix_matching
    from icl_jax.measures.head_scores import previous_token as previous_token
    from icl_jax.measures.loss_by_log_tokens import loss_derivatives as loss_derivatives
    from icl_jax.measures.loss_derivative import derivative_by_log_index as derivative_by_log_index
    from icl_jax.measures.path_patching import path_patching as path_patching
    from icl_jax.measures.path_patching import path_to_logits as path_to_logits
    from icl_jax.measures.paths import expand_paths as expand_paths
    from icl_jax.measures.token_classes import classify_tokens as classify_tokens
    from icl_jax.measures.token_pairs import TokenPairs as TokenPairs
    from icl_jax.measures.token_pairs import labelled_pairs as labelled_pairs
    from icl_jax.measures.token_pairs import load_pairs as load_pairs
    from icl_jax.measures.token_pairs import pairs_of as pairs_of
    from icl_jax.measures.token_pairs import repeated_pairs as repeated_pairs

# Imported when first used, so that naming one measurement does not load them all.
_HOMES = {
    "FactoredMatrix": "icl_jax.maths.factored_matrix",
    "TokenPairs": "icl_jax.measures.token_pairs",
    "ablate": "icl_jax.measures.ablation",
    "activation_patching": "icl_jax.measures.activation_patching",
    "analyze": "icl_jax.analysis.run_measurements",
    "analyze_members": "icl_jax.analysis.run_measurements",
    "analyze_over_members": "icl_jax.analysis.over_members",
    "attribution_patching": "icl_jax.measures.attribution_patching",
    "classify_tokens": "icl_jax.measures.token_classes",
    "composition_scores": "icl_jax.measures.composition",
    "copying_eigenvalue": "icl_jax.measures.copying",
    "derivative_by_log_index": "icl_jax.measures.loss_derivative",
    "direct_logit_attribution": "icl_jax.maths.logit_attribution",
    "duplicate_token": "icl_jax.measures.head_scores",
    "expand_paths": "icl_jax.measures.paths",
    "induction_stripe": "icl_jax.measures.head_scores",
    "labelled_pairs": "icl_jax.measures.token_pairs",
    "load_pairs": "icl_jax.measures.token_pairs",
    "logit_copying": "icl_jax.measures.copying",
    "loss_derivatives": "icl_jax.measures.loss_by_log_tokens",
    "make_context": "icl_jax.analysis.run_measurements",
    "pairs_of": "icl_jax.measures.token_pairs",
    "path_attribution": "icl_jax.measures.attribution_patching",
    "path_patching": "icl_jax.measures.path_patching",
    "path_to_logits": "icl_jax.measures.path_patching",
    "patterns": "icl_jax.maths.activations",
    "prefix_matching": "icl_jax.measures.head_scores",
    "previous_token": "icl_jax.measures.head_scores",
    "repeated_pairs": "icl_jax.measures.token_pairs",
    "repeated_tokens": "icl_jax.maths.head_scores",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'icl_jax.analysis' has no attribute {name!r}")

"""Known values of docs/measures.md: heads ablated and activations patched."""

import functools

import numpy as np
import xarray as xr

from icl_jax.measures import (
    ablation,
    activation_patching,
    attribution_patching,
    patching_agreement,
    path_patching,
    seen_bigrams,
)
from icl_jax.model.params import init_params
from tests.known_values.model import (
    LATER,
    UNTRAINED,
    Arrays,
    Found,
    growing,
    hand_built,
    of_hand_built,
    of_untrained,
)


def _seen_bigrams() -> Found:
    found = of_hand_built(seen_bigrams.MEASUREMENT)
    losses = {name: found[name] for name in ("set_seen_bigram_loss", "set_new_bigram_loss")}
    return {
        ("seen_bigram_share", "hand-built"): found["seen_bigram_share"],
        **{(name, "hand-built, intact"): loss[0] for name, loss in losses.items()},
        **{(name, "hand-built, without head 1.0"): loss[1] for name, loss in losses.items()},
        ("set_copy_loss", "hand-built, intact, copy 4"): found["set_copy_loss"][0, 3],
        ("set_copy_loss", "hand-built, without head 1.0, copy 4"): found["set_copy_loss"][1, 3],
    }


def _ablation() -> Found:
    params, setting = hand_built()
    measured = ablation.ablate(params, setting.held_out, setting.config.model)
    loss = {name: np.asarray(values) for name, values in measured.items()}
    found = {
        (f"{kind}_loss", f"hand-built, head {layer}.0, later copies, less intact"): float(
            (loss[kind][layer, 0] - loss["intact"])[:, LATER].mean()
        )
        for kind in ("full", "pattern_preserving")
        for layer in (0, 1)
    }
    untrained = ablation.ablate(init_params(UNTRAINED, seed=0), setting.held_out, UNTRAINED)
    difference = np.asarray(untrained["full"]).mean(axis=(2, 3)) - np.asarray(untrained["intact"]).mean()
    return found | {("full_loss", "untrained, less intact"): np.abs(difference).max()}


def _set_ablation() -> Found:
    effect = float(growing()["set_icl_effect"][-1])
    return {("set_icl_effect", "a run whose head 1.0 grows, V = 24, at its end"): effect}


def _set_sizes() -> Found:
    last = growing().isel(selected=-1).sel(set_share=0.2)
    of = "a run whose head 1.0 grows, V = 24, at its end, {}, 20 %"
    return {
        ("size_icl_effect", of.format(kind)): float(last["size_icl_effect"].sel(set_kind=kind))
        for kind in ("induction", "previous_token")
    }


@functools.cache
def _patched(is_trained: bool) -> Arrays:
    found: Arrays = {}
    for module in (activation_patching, path_patching, attribution_patching):
        found |= (of_hand_built if is_trained else of_untrained)(module.MEASUREMENT)
    return found


def _activation_patching() -> Found:
    found = _patched(True)
    largest = np.abs(_patched(False)["patched_head_effect"]).max()
    return {
        ("patched_all_effect", "hand-built"): float(found["patched_all_effect"]),
        ("patched_head_effect", "untrained, the largest"): largest,
    } | {
        ("patched_head_effect", f"hand-built, head {layer}.0"): found["patched_head_effect"][layer, 0]
        for layer in (0, 1)
    }


def _path_patching() -> Found:
    found = _patched(True)
    return {
        ("path_all_effect", "hand-built"): float(found["path_all_effect"]),
        ("k_layer_effect", "hand-built, layer 0 to 1"): found["k_layer_effect"][0, 1],
    } | {(f"{name}_path_effect", "hand-built, 0.0 to 1.0"): found[f"{name}_path_effect"][0, 0, 1, 0] for name in "qkv"}


def _attribution_patching() -> Found:
    found, untrained = _patched(True), _patched(False)
    largest = np.abs(untrained["head_attribution"] - untrained["patched_head_effect"]).max()
    return {
        ("k_path_attribution", "hand-built, 0.0 to 1.0"): found["k_path_attribution"][0, 0, 1, 0],
        ("head_attribution", "hand-built, head 1.0"): found["head_attribution"][1, 0],
        ("head_attribution", "untrained, the largest less patched_head_effect"): largest,
    }


def _patching_agreement() -> Found:
    exact = np.array([[0.1, np.nan], [0.3, -0.2]])
    dims = ("selected", "layer", "head")
    values = {"patched_head_effect": exact, "head_attribution": 0.5 * exact}
    values |= {f"{name}_path_effect": exact for name in "qkv"}
    values |= {f"{name}_path_attribution": 0.5 * exact for name in "qkv"}
    dataset = xr.Dataset({name: (dims, value[None]) for name, value in values.items()})
    found = patching_agreement.DERIVED.derive(hand_built()[1], dataset)
    return {("path_agreement", "effects that are proportional"): float(found["path_agreement"][0])}


def _shuffled_context() -> Found:
    start = float(growing()["shuffled_icl"][0])
    return {("shuffled_icl", "a run whose head 1.0 grows, at its start, uniform"): start}


def _ablation_effects() -> Found:
    at_end = growing().sel(selected=int(growing()["step_after"]))
    pairs = [("pattern_preserving", 1), ("pattern_preserving", 0), ("full", 0)]
    return {
        (f"{kind}_along_change", f"a run whose head 1.0 grows, head {layer}.0"): float(
            at_end[f"{kind}_along_change"][layer, 0]
        )
        for kind, layer in pairs
    }

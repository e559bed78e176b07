"""One letter per array axis, used in name suffixes, jaxtyping annotations and einsums throughout.

==  =========================================
B   row of a batch
T   token position (0 is BOS)
Q   query position
K   key position
D   d_model, the residual stream
H   attention head within a layer
G   head of keys and values, which heads may share
E   d_head
M   d_mlp
V   vocabulary
N   layer
S   snapshot (a training step that was saved)
==  =========================================

Weights are row-vector matrices, ``x @ W``: QK = ``W_Q @ W_K.mT``, OV = ``W_V @ W_O``.
"""

INPUTS = ("q_input", "k_input", "v_input")
"""Activations that are there only where they are named."""
ACTIVATION_AXES = {
    "resid_pre": "B T D", "q": "B H T E", "k": "B H T E", "v": "B H T E", "attn_scores": "B H Q K",
    "pattern": "B H Q K", "z": "B H T E", "result": "B T H D", "resid_mid": "B T D", "mlp_out": "B T D",
    "resid_post": "B T D", "q_input": "B T H D", "k_input": "B T G D", "v_input": "B T G D",
}  # fmt: skip
"""The activations of the forward pass, whose names a tap is told, and their axes."""

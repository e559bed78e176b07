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

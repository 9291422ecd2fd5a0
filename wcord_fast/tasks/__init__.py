"""The paper's two transfers that are no pair of classifiers: privileged distillation and cross-modal transfer.

Both networks get the same batch, each through its own view of it (`views`): another resolution, or other channels of
colour. `sweep` and `crossmodal` are the commands; training itself is that of `wcord_fast.train`.
"""

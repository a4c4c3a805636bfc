"""The page: one file per tab. Handlers are thin; no tensors and no maths in here.

``build_app`` and ``launch`` are in :mod:`mergelab.dashboard.app`; importing the package imports no gradio and no torch.
"""

"""Routed models: a shared model, what each expert has beyond it, and a router that mixes these parts for every input.

Twin-Merging (Lu et al., NeurIPS 2024, arXiv 2406.15479) and the models it is compared with.
"""

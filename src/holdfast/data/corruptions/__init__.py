"""Fifteen common corruptions at five severities, for images of any size, grey or colour.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
arXiv:1903.12261. Here they work on whole batches of tensors, and every random number belongs to an image's content and
the run, so that what happens to an image depends neither on its batch nor on its place in it. All severities of a
corruption share an image's random numbers: what differs between them is the strength alone.
"""

from holdfast.data.corruptions.catalogue import CORRUPTIONS, SEVERITIES, Corruption, corrupt

__all__ = ["CORRUPTIONS", "SEVERITIES", "Corruption", "corrupt"]

"""Kernels in C, for what PyTorch has no fast one: compiled once on each machine that can."""

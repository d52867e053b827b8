"""Kernels for CPUs, compiled by Numba for the processor that they run on."""

"""Meshes, shardings, processes, memory and attention kernels."""

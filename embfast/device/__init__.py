"""Devices: CUDA kernels through CuPy, and devices and processes of torch."""

"""The GPU side: CUDA kernels through CuPy, and torch's devices and processes."""

"""Component code for GPUs: written as CUDA C++, compiled for an architecture, or run by threads of the host."""

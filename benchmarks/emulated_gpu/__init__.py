"""A GPU that is not there: what a release does on CUDA's device, on a machine that has none.

`device.cpp` puts CUDA's device into the host's memory. Values are those of the processor; what is real is where tensors
are. Two things can be seen so before anybody rents a GPU: whether everything that meets is on one device
(`python -m benchmarks.emulated_gpu walk`), and what a device holds at the fullest moment of each stage, at the size of
the real model (`python -m benchmarks.emulated_gpu memory`, after `make release`). How fast a GPU is, and what its own
kernels say, cannot be seen.
"""

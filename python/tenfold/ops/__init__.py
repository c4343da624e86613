"""Fused ops: arrays in, arrays out, gradients for torch. One module per family."""

"""Torch modules that several methods share.

Importing this package tells glibc to keep freed memory (tenfold.ops.memory.reuse_large_buffers says what that
costs and how to prevent it): activations above 32 MiB are otherwise mapped anew at every step.
"""

from tenfold.ops.memory import reuse_large_buffers

reuse_large_buffers()

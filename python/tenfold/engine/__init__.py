"""The parts a training loop calls: run directory, checkpoints, metrics, progress, budget, figures.

There is no trainer here: a method's `train.py` is the loop, and uses what it wants of these modules.
Nothing is imported here, so that `tenfold info` and the ops never load torch by way of the engine.
"""

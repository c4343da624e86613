"""tenfold: fused ops and ten trainers for machine learning on a micro-budget."""

__version__ = "0.1.0"

"""Real Logic: formulas over groundings, compiled to fused ops."""

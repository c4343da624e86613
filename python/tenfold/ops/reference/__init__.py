"""Plain-torch twins of the ops: the specification that tests and benchmarks compare with."""

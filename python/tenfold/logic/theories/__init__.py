"""Knowledge bases of the papers' tasks and the data that belongs to them, for any semantics."""

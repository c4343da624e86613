"""Knowledge bases of the papers' tasks, with the data that belongs to them; any semantics may compile them."""

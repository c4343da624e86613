"""One folder per published method; a method never imports another."""

"""Text-to-image diffusion: the transformer, EDM preconditioning, samplers, text encoder, generators."""

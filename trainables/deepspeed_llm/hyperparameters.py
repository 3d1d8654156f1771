"""AdamW as of Llama 2 (Touvron et al. 2023, arXiv 2307.09288, section 2.2). Free of torch."""

LEARNING_RATE = 3e-4
"""Learning rate of trials, and the default peak of training."""
WEIGHT_DECAY = 0.1
"""Weight decay of matrices in trials, and the default of training."""
BETAS = (0.9, 0.95)
EPSILON = 1e-5

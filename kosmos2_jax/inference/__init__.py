"""Generation and prediction: prompts, the decode loop, and `Predictor` over them."""

"""An image that obeys its hyperparameters: enough of a trainer to probe the engine with."""

"""The image: train, serve, cache-base-model, one entry point under an `/opt/ml`-shaped root."""

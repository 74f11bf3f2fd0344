"""The domain of Dropforge: datasets, recipes, plans, gates, names. Pure, but for `aws.py`."""

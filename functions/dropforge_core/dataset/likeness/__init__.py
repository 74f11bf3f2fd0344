"""Which rows repeat, contradict, leak into or resemble one another, and which are held out for that."""

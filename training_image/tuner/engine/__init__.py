"""Answers to prompts of any variant, a step at a time: the protocol, and what stands behind it."""

"""What people are told: one card a run, folded from its events, and its Slack and e-mail forms."""

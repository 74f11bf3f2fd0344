"""AWS on one machine: an embedded default for trying, developing and testing. See docs/local-aws.md."""

"""Training by several processes: one for each GPU of each host, in step with one another."""

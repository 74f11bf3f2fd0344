"""Whether a candidate has earned its place: paired, against base and champion, with the uncertainty told."""

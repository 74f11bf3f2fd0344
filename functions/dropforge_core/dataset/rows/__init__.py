"""From a row as bytes to a canonical row, or to everything that is wrong with it."""

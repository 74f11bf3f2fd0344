"""Whole datasets with planted faults: every kind of fault, format and container, and what must be told of it.

texts       sentences that nothing may object to
rows        good rows of every format
faults      rows with one fault, by code
files       files with one fault, by code
containers  rows to the bytes of a file, and the line of each row
datasets    the strategy: files, recipe and expectation
"""

"""Amazon States Language, the JSONata dialect, interpreted without AWS.

Pure: time, waiting, randomness and the work of task states are arguments. The local AWS runs
executions with it; tests walk the state machine with tasks that answer from a table.
What it does not interpret (JSONPath, Parallel, a Map's reader and writer, activities) it refuses at `Definition.parse`.
"""

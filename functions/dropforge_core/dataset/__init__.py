"""Datasets: reading, checking, canonical rows, hold-out, shards. Pure: streams in, report and rows out.

The entry points, the same for the Lambda function, the command line and CI:

    from dropforge_core.dataset.reading.source import SourceFile, local_file
    from dropforge_core.dataset.validation import examine, validate

    validate(files: Sequence[SourceFile], recipe: Recipe | None = None, *,
             tokenizer: TokenCounter | None = None,
             recipe_problems: Sequence[Problem] = (),
             progress: Callable[[int], None] | None = None) -> ValidationReport

    examine(same arguments) -> Examination          # .report, .facts, .digest, and
    dataset.writing.write(examination, sink)        # the second pass: canonical rows, split into sides

`dataset.recipe_problems.read_recipe(text, default, file)` gives the recipe or its faults as `Problem`s.
`dataset.tokens.load_tokenizer(tokenizer_json, tokenizer_config, template)` gives the TokenCounter.

This module imports nothing, so that `dataset.codes` is free for functions that lack the validation layer.
"""

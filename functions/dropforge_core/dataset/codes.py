"""Every stable code of a dataset's problems: how severe, what was expected, how to mend it.

`docs/error-codes.md` has a line for each. A code is never renamed, and never gets another meaning.
"""

from typing import Final, Literal, NamedTuple

Severity = Literal["error", "warning", "off"]


class Code(NamedTuple):
    """What is the same for every problem of one kind."""

    severity: Severity
    """Unless the recipe says otherwise."""
    expected: str
    mend: str
    scope: Literal["file", "row", "dataset", "recipe"] = "row"
    adjustable: bool = False
    """Whether `dataset.checks` of a recipe may change the severity. What can't be read can't be excused."""


CODES: Final[dict[str, Code]] = {
    # the file
    "KEY_REFUSED": Code(
        "error",
        "a key of the form datasets/<model>/<file> or datasets/<model>/<version>/<file>",
        "Rename the file and upload it again.",
        scope="file",
    ),
    "FILE_VANISHED": Code("error", "the file that was uploaded", "Upload it again.", scope="file"),
    "FILE_LATE": Code(
        "error",
        "every file of a version before its _READY",
        "When all files are there, upload _READY again.",
        scope="file",
    ),
    "FILE_EMPTY": Code("error", "at least one row", "Upload the file again with its content.", scope="file"),
    "FILE_KIND": Code(
        "error",
        "JSON Lines, a JSON array, CSV or TSV, plain or compressed with gzip or zstd; or Parquet",
        "Convert the file to JSON Lines; docs/datasets.md shows one line that does so.",
        scope="file",
    ),
    "FILE_NONE": Code(
        "error", "at least one data file", "Upload train.jsonl beside the _READY marker.", scope="file"
    ),
    "COMPRESSION_BROKEN": Code(
        "error", "a whole gzip or zstd stream", "Compress the file again and upload all of it.", scope="file"
    ),
    "COMPRESSION_RATIO": Code(
        "error",
        "at most 200 times the compressed size",
        "Upload the file uncompressed, or look for a repetition.",
        scope="file",
    ),
    "ENCODING_UTF16": Code(
        "error", "UTF-8", "Save the file as UTF-8: iconv -f UTF-16 -t UTF-8.", scope="file"
    ),
    "BOM": Code(
        "warning",
        "UTF-8 without a byte order mark",
        "Save without BOM; it was left out of the first row.",
        scope="file",
        adjustable=True,
    ),
    "ARRAY_BROKEN": Code(
        "error",
        "one JSON array of objects, closed by ']'",
        "Write one object a line instead (.jsonl): jq -c '.[]'.",
        scope="file",
    ),
    "CSV_HEADER": Code(
        "error",
        "a first line that names each column once, with those of one format (prompt,completion or text ...)",
        "Add or mend the header line.",
        scope="file",
    ),
    "CSV_BROKEN": Code(
        "error",
        "RFC 4180: quotes doubled inside quoted fields, each quote closed",
        "Write the file with a CSV library, every field quoted.",
        scope="file",
    ),
    "CSV_FIELDS": Code(
        "error",
        "as many fields as the header has",
        "Quote the fields that contain the separator or a line break.",
    ),
    "PARQUET_BROKEN": Code(
        "error",
        "a whole Parquet file without encryption",
        "Write the file again and upload all of it.",
        scope="file",
    ),
    "PARQUET_COLUMNS": Code(
        "error",
        "columns of one format (messages, prompt and completion, text ...), each name once, of types that JSON has",
        "Rename, cast or drop the column.",
        scope="file",
    ),
    # the bytes of a row
    "LINE_TOO_LONG": Code(
        "error", "at most 1 MiB a row", "Split the row; no supported model could read so long a one."
    ),
    "BLANK_LINE": Code(
        "warning", "a row on every line", "Remove the line; it was passed over.", adjustable=True
    ),
    "UTF8_INVALID": Code(
        "error", "UTF-8", "Write the file with encoding='utf-8'; the byte is where another encoding shows."
    ),
    "JSON_INVALID": Code(
        "error", "one JSON object on the line", "Write rows with a JSON library, one a line."
    ),
    "JSON_NAN": Code(
        "error",
        "JSON, which has no NaN and no Infinity",
        "Write null or leave the field out (allow_nan=False shows where).",
    ),
    "JSON_SURROGATE": Code(
        "error",
        "whole characters",
        "The text was cut in the middle of a \\u escape pair; cut by characters, not by UTF-16 units.",
    ),
    "JSON_NUMBER": Code("error", "a number within the range of a double", "Write it as text."),
    "JSON_DEPTH": Code("error", "at most 64 levels", "Flatten the row."),
    "JSON_DUPLICATE_KEY": Code(
        "error", "each key once in an object", "Remove one of the two; parsers disagree about which counts."
    ),
    "NUL_CHARACTER": Code("error", "text without NUL characters", "Remove U+0000 from the text."),
    "BIDI_CONTROL": Code(
        "warning",
        "text whose order on the screen is its order in the file",
        "Remove U+202A-202E and U+2066-2069, or set dataset.checks.BIDI_CONTROL to off.",
        adjustable=True,
    ),
    "PARQUET_VALUE": Code(
        "error",
        "a value that JSON can hold: finite numbers, UTF-8 text, dates of this calendar",
        "Write null, cast the column, or drop it.",
    ),
    # the shape of a row
    "ROW_TYPE": Code("error", "an object with named fields", 'Wrap the value, for example {"text": ...}.'),
    "FORMAT_UNKNOWN": Code(
        "error",
        "messages, conversations, prompt and completion, instruction and output, chosen and rejected, or text",
        "Rename the fields to those of one format (docs/datasets.md).",
    ),
    "FORMAT_MIXED": Code(
        "error", "one format in a whole dataset", "Convert one of the two, or upload them as two datasets."
    ),
    "FIELD_MISSING": Code("error", "the field", "Add it."),
    "FIELD_TYPE": Code("error", "the field in the format's type", "Write the value as that type."),
    "FIELD_IGNORED": Code(
        "warning",
        "fields that training uses",
        "Nothing needs doing if you don't miss it: it was left out.",
        adjustable=True,
    ),
    "MESSAGES_EMPTY": Code("error", "at least one message", "Remove the row."),
    "ROLE_UNKNOWN": Code("error", "system, user, assistant or tool", "Rename the role."),
    "ROLE_ORDER": Code(
        "error",
        "user and assistant in turn, beginning with user (after an optional system message)",
        "Merge neighbouring messages of one role, or add the missing turn.",
    ),
    "SYSTEM_PLACEMENT": Code(
        "error", "at most one system message, and that the first", "Move it to the beginning."
    ),
    "CONTENT_EMPTY": Code("error", "text that is more than white space", "Fill it in or remove the row."),
    "CONTENT_PART": Code("error", "text parts only", "Images and sound can't be trained; remove the row."),
    "LAST_NOT_ASSISTANT": Code(
        "error", "an answer of the assistant at the end", "Add the answer, or cut what follows the last one."
    ),
    "WEIGHT_INVALID": Code(
        "error", "weight 0 or 1, on assistant messages only", "Write 0 or 1, or leave it out."
    ),
    "NOTHING_TO_LEARN": Code(
        "error",
        "at least one assistant message with weight 1",
        "Give the answer that is to be learnt weight 1.",
    ),
    "TOOL_CALL_INVALID": Code(
        "error",
        'tool_calls of {"id", "type": "function", "function": {"name", "arguments"}}',
        "Write tool calls as the chat completions API returns them.",
    ),
    "TOOL_ARGUMENTS": Code(
        "error", "arguments that parse as a JSON object", "Write them with json.dumps of a dictionary."
    ),
    "TOOL_ID_REPEATED": Code(
        "error", "each tool call's id once in a row", "Give every call an id of its own."
    ),
    "TOOL_ID_UNKNOWN": Code(
        "error",
        "a tool_call_id that an earlier call of the row has, answered once",
        "Copy the id from the call that this answers.",
    ),
    "TOOL_UNANSWERED": Code(
        "error",
        "a tool message for every call before the talk goes on",
        "Add the tool's answer, or end the row with the call.",
    ),
    "TOOL_UNDEFINED": Code(
        "error", "the name of a tool in the row's `tools`", "Add its definition to `tools`."
    ),
    "PREFERENCE_SAME": Code("error", "two different answers", "Remove the row; it prefers nothing."),
    "PREFERENCE_PROMPT": Code(
        "error",
        "chosen and rejected that share everything but the last answer",
        "Give the common part as `prompt`.",
    ),
    "RESERVED_TOKEN": Code(
        "error",
        "text without the control tokens of chat templates",
        "Remove the token; the template puts it where it belongs.",
        adjustable=True,
    ),
    "TEMPLATE_REFUSED": Code(
        "error",
        "a row that the base model's chat template accepts",
        "Change the roles or fields that the template objects to.",
        adjustable=True,
    ),
    "OVER_LENGTH": Code(
        "error",
        "at most training.max_seq_len tokens",
        "Shorten the row, raise max_seq_len, or set dataset.on_invalid to drop.",
        adjustable=True,
    ),
    "OVER_LENGTH_ESTIMATED": Code(
        "warning",
        "at most training.max_seq_len tokens",
        "Shorten the row or raise max_seq_len; the base model's tokenizer was not at hand to count.",
        adjustable=True,
    ),
    # the dataset
    "ROWS_TOO_FEW": Code(
        "error", "dataset.min_rows valid rows", "Add rows, or lower dataset.min_rows.", scope="dataset"
    ),
    "ROWS_TOO_MANY": Code(
        "error", "at most dataset.max_rows rows", "Upload fewer rows, or raise the limit.", scope="dataset"
    ),
    "ROWS_DROPPED": Code(
        "warning",
        "every row valid",
        "The rows in question are listed with their own codes.",
        scope="dataset",
        adjustable=True,
    ),
    "DROP_LIMIT": Code(
        "error",
        "at most dataset.max_dropped_share of the rows to drop",
        "Mend the rows that are listed, or raise dataset.max_dropped_share.",
        scope="dataset",
    ),
    "METHOD_FORMAT": Code(
        "error",
        "preference pairs for method dpo",
        "Set method to sft, or add chosen and rejected.",
        scope="dataset",
    ),
    "PREFERENCE_UNUSED": Code(
        "warning",
        "method dpo for preference pairs",
        "Set method to dpo; with sft only the chosen answers are learnt.",
        scope="dataset",
        adjustable=True,
    ),
    "EVAL_EMPTY": Code(
        "error",
        "valid rows in the evaluation files that were given",
        "Mend or remove the evaluation files.",
        scope="dataset",
    ),
    "TRAIN_EMPTY": Code("error", "valid rows to train on", "Name a file train.jsonl.", scope="dataset"),
    "DUPLICATE_ROW": Code(
        "warning",
        "each row once",
        "Remove the repetitions, unless the weight is intended.",
        scope="dataset",
        adjustable=True,
    ),
    "NEAR_DUPLICATE": Code(
        "warning",
        "rows that differ in more than numbers and a few words",
        "Look at a few; they add cost and little else.",
        scope="dataset",
        adjustable=True,
    ),
    "CONFLICTING_ANSWERS": Code(
        "warning",
        "one answer to one prompt",
        "Decide which is right; the model will learn to waver.",
        scope="dataset",
        adjustable=True,
    ),
    "LEAKAGE_EXACT": Code(
        "error",
        "evaluation prompts that training has not seen",
        "Remove the row from one of the two files.",
        scope="dataset",
        adjustable=True,
    ),
    "LEAKAGE_NEAR": Code(
        "warning",
        "evaluation prompts unlike those of training",
        "Remove it from one side, or leave out the eval file: the hold-out is then cut by similarity.",
        scope="dataset",
        adjustable=True,
    ),
    "HOLDOUT_BY_ROW": Code(
        "warning",
        "rows of many kinds",
        "Give eval files of your own; the measure on this hold-out may flatter.",
        scope="dataset",
        adjustable=True,
    ),
    "LENGTH_IMBALANCE": Code(
        "warning",
        "rows of comparable length",
        "Look at the longest rows; they weigh more than all others.",
        scope="dataset",
        adjustable=True,
    ),
    "ANSWER_IMBALANCE": Code(
        "warning",
        "answers that vary",
        "Add rows with the other answers, or the model will learn the frequent one.",
        scope="dataset",
        adjustable=True,
    ),
    "LANGUAGE_MIX": Code(
        "warning",
        "one language",
        "Nothing needs doing if it is meant; else look for rows in the other language.",
        scope="dataset",
        adjustable=True,
    ),
    # private data: located and counted, never quoted
    "PII_EMAIL": Code(
        "warning",
        "no e-mail addresses",
        "Replace them, for example by <email>.",
        scope="dataset",
        adjustable=True,
    ),
    "PII_PHONE": Code(
        "warning",
        "no telephone numbers",
        "Replace them, for example by <phone>.",
        scope="dataset",
        adjustable=True,
    ),
    "PII_CARD": Code(
        "warning",
        "no payment card numbers",
        "Replace them, for example by <card>.",
        scope="dataset",
        adjustable=True,
    ),
    "PII_IBAN": Code(
        "warning",
        "no bank account numbers",
        "Replace them, for example by <iban>.",
        scope="dataset",
        adjustable=True,
    ),
    "SECRET_AWS": Code(
        "warning", "no AWS access keys", "Revoke the key, then remove it.", scope="dataset", adjustable=True
    ),
    "SECRET_GCP": Code(
        "warning", "no Google API keys", "Revoke the key, then remove it.", scope="dataset", adjustable=True
    ),
    "SECRET_AZURE": Code(
        "warning",
        "no Azure account keys",
        "Revoke the key, then remove it.",
        scope="dataset",
        adjustable=True,
    ),
    "SECRET_TOKEN": Code(
        "warning", "no access tokens", "Revoke the token, then remove it.", scope="dataset", adjustable=True
    ),
    "SECRET_PRIVATE_KEY": Code(
        "warning", "no private keys", "Revoke the key, then remove it.", scope="dataset", adjustable=True
    ),
    # the recipe
    "RECIPE_YAML": Code(
        "error", "YAML with keys and values", "Mend the line; docs/recipes.md has examples.", scope="recipe"
    ),
    "RECIPE_FIELD_UNKNOWN": Code(
        "error", "a field of docs/recipes.md", "Mend the spelling or remove it.", scope="recipe"
    ),
    "RECIPE_MISSING": Code(
        "error", "the field", "Add it; a recipe needs at least base_model.", scope="recipe"
    ),
    "RECIPE_VALUE": Code("error", "a value within the field's range", "Change the value.", scope="recipe"),
    "RECIPE_CONFLICT": Code(
        "error", "fields that agree with one another", "Change or remove one of the two.", scope="recipe"
    ),
}

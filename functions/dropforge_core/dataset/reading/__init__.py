"""From files to blocks of rows as bytes, each row with its line; and how a dataset is divided into parts."""

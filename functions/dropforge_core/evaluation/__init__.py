"""From the hold-out to questions, and from the answers back to rows. Pure: bytes in, contracts out."""

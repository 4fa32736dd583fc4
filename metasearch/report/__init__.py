"""What a search found: queries as pandas frames, tables, and the display while it runs."""

"""The command line, one file for each group of commands; words and exit codes for people, nothing decided here."""

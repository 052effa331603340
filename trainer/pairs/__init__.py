"""Preference pairs: from public data sets and from files of any spelling into the one shape `pairs_all.jsonl` has.

Nothing here trains on a pair; the rules of a single row are those of `guard/checks/`.
"""

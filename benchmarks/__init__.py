"""Measurements: our own paths beside a peer or a bare limit, interleaved in one run, medians. Never part of a test."""

"""Mutations: bugs that a tool put into sound code and a test found, as rows to learn repairing from."""

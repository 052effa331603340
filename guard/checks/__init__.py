"""Pure guards: facts in, a verdict with every reason out. Nothing here moves, writes or deletes anything."""

"""The demo: a home in a scratch folder, a real daemon, and the main job on real text, each step checked."""

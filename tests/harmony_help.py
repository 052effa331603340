"""What tests of Harmony share: the seed's conversation, its text in the simplified form, and what of a text is trained.

Not a test itself.
"""

from __future__ import annotations

from typing import Any

from trainer.templates.base import text_of

# Seed 004, section 5, and its text as the sections 5b and 5c lay it out.
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "Fix the failing test in src/parser.rs"},
    {"role": "assistant", "thinking": "Let me check the test output...",
     "tool_calls": [{"id": "1", "name": "run_tests", "arguments": {"cmd": "cargo test"}}]},
    {"role": "tool", "tool_call_id": "1", "content": "FAILED: test_parse_expr"},
    {"role": "assistant", "content": "The issue is..."},
]  # fmt: skip
SIMPLE = """\
<|developer|>
You are a Rust coding agent.
<|user|>
Fix the failing test in src/parser.rs
<|thinking|>
Let me check the test output...
<|tool_call|>
{"id":"1","name":"run_tests","arguments":{"cmd":"cargo test"}}
<|tool_result|>
FAILED: test_parse_expr
<|assistant|>
The issue is...
<|endoftext|>"""


def trained(parts: list[Any]) -> str:
    return text_of(part for part in parts if part.trained)

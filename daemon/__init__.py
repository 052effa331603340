"""Keep it going for years: watch, settle, take in, queue, supervise children, publish. No torch in this process."""

"""Text to token ids and back, and conversations to prompts (phi3-spec §2)."""

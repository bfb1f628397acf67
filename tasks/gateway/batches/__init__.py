"""The Files and Batch APIs of OpenAI, and Anthropic's Message Batches. The gateway takes and shows; a job answers."""

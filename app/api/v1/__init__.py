"""The vendors' APIs: what an application written for OpenAI or Anthropic finds when it points its base URL here."""

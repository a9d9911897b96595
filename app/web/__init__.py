"""The pages that people see. No framework, no build step, nothing fetched from elsewhere."""

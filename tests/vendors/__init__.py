"""Local servers that replay vendors' documented wire formats, so that no test ever leaves this machine."""

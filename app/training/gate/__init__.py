"""The gate: whether a trained version may be promoted. Evidence in, a verdict with its reasons out; see doc/gate.md."""

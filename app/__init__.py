"""Aprendiz: a self-hosted LLM service that learns from its users.

The layers, top to bottom (imports go only downward; import-linter checks it):

    cli -> main -> api, web -> training -> models -> memory -> providers | security | db -> core
"""

__version__ = "0.1.0"

"""Where vectors are searched: one protocol, several stores."""

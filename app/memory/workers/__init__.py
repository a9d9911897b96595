"""Child processes of the memory: what they read or compute stays out of the service process."""

"""The ground floor: settings, types, errors, logging, metrics. Imports nothing of ours from above."""

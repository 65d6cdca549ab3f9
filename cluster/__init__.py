"""A local Ray node, job submission, deployment files. Imports nothing of app."""

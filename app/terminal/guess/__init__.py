"""A recipe from the look of files: what each of their columns is, and why that is thought."""

"""HTTP: parsing, guarding, problem documents."""

"""How text is cut into rows: fields and quotes, JSON, nested columns, rows that list items."""

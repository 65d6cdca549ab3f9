"""What a search leaves to read: tables, pictures, pages and the recipe of the chosen trial."""

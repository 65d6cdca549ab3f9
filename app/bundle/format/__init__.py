"""What lies in a bundle's folder, and how it is opened."""

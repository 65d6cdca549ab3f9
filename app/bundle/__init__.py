"""What is served: export, row stores, index, and a runtime without Ray or torch."""

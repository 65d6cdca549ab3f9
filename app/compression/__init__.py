"""Makes a trained model small: prunes its dense part and quantises its rows."""
